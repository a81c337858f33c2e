"""The size that a plan tells before training is the size of the file that training writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optbench.lora.blocks import num_saved_numbers, sized_sites
from optbench.lora.network import build_network
from optbench.lora.save import save_lora
from optbench.models import sd2, sd15, sdxl
from optbench.models.files.families import FAMILIES
from optbench.models.files.lora_sites import lora_sites
from optbench.storage.safetensors_header import read_header
from tests.builders.checkpoint_files import options, write_folder
from tests.builders.network_options import PLAIN_NETWORK

TINY = {"sd15": sd15.tiny, "sd2": sd2.tiny, "sdxl": sdxl.tiny}
CONV = {"conv_dim": 3, "conv_alpha": 1.0}


@pytest.fixture(scope="module", params=TINY)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = TINY[request.param](1)
    folder = tmp_path_factory.mktemp(request.param)
    write_folder(model, folder)
    return model, lora_sites(options(request.param, folder))


def listed(number: int, **changes: Any) -> tuple[Any, ...]:
    return tuple(changes.get(f"at{place}", 5) for place in range(number))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_text_encoder": False},
        CONV,
        {**CONV, "dora": True, "rslora": True},
        {"block_dims": "all"},
        {"block_dims": "some", "conv_block_dims": "all"},
        {**CONV, "mid_lr_weight": 0.0, "up_lr_weight": "cosine"},
    ],
    ids=str,
)
def test_a_written_file_weighs_what_headers_tell(
    tmp_path: Path, base: Any, settings: dict[str, Any]
) -> None:
    model, sites = base
    number = FAMILIES[model.family].unet_blocks.num_listed
    lists = {"all": listed(number), "some": listed(number, at2=0, at4=9)}
    settings = {
        key: lists.get(value, value) if key.endswith("block_dims") else value
        for key, value in settings.items()
    }
    network_options = replace(PLAIN_NETWORK, dim=5, alpha=2.0, **settings)
    network = build_network(model.lora_targets(), network_options, seed=1)
    path = tmp_path / "a.safetensors"
    save_lora(path, network.state_dict(), precision="fp16", metadata={})
    sized = sized_sites(sites.values(), network_options)
    saved_bytes = path.stat().st_size - read_header(path).data_start
    assert 2 * num_saved_numbers(sized, dora=network_options.dora) == saved_bytes
