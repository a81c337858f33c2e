"""The embedded world: a drawn cast, its captions and its tokenizer, small enough to train on a CPU.

`world` draws, `captions` describes and `tokenizer` writes the vocabulary of those descriptions.
Nothing is imported here, so that naming the package costs no drawing library.
"""
