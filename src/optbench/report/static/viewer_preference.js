"use strict";
// Strengths from votes, the numbers of the report (optbench.analysis.stats.preference): Bradley-Terry with ties
// (Davidson 1970), a normal prior of deviation 3, intervals over prompts with seeds and over trainings.
// And which two settings are to be compared next. Knows nothing of the page.
(function (ob) {
  const PRECISION = 1 / 9, CONFIDENCE = 0.95, MOST_CELLS = 60, MANY = 1e6, STEPS = 60, CLOSE = 1e-8;
  const TERMS = [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 1]];  // of s_i, s_j and log v in log P(first), P(second), P(tie)
  const AT_RANDOM = 0.25, LEAST_HOPE = 0.05, CLEARLY = 3;
  const WIDENED = 1.3;  // as the report has it: people stop when they like the answer

  // Solve a x = b for every column of b, by elimination; a is symmetric and positive.
  function solve(a, b) {
    const n = a.length, rows = a.map((row, index) => [...row, ...b[index]]);
    for (let col = 0; col < n; col += 1) {
      let best = col;
      for (let row = col + 1; row < n; row += 1) { if (Math.abs(rows[row][col]) > Math.abs(rows[best][col])) { best = row; } }
      [rows[col], rows[best]] = [rows[best], rows[col]];
      for (let row = 0; row < n; row += 1) {
        const factor = row === col ? 0 : rows[row][col] / rows[col][col];
        if (factor !== 0) { for (let at = col; at < rows[row].length; at += 1) { rows[row][at] -= factor * rows[col][at]; } }
      }
    }
    return rows.map((row, index) => row.slice(n).map((value) => value / row[index]));
  }

  function logits(theta, i, j) { return TERMS.map(([first, second, tie]) => first * theta[i] + second * theta[j] + tie * theta[theta.length - 1]); }

  function shares(theta, i, j) {
    const logs = logits(theta, i, j), top = Math.max(...logs), parts = logs.map((log) => Math.exp(log - top));
    const total = parts[0] + parts[1] + parts[2];
    return { chances: parts.map((part) => part / total), logs, logTotal: top + Math.log(total) };
  }

  // Votes of one kind are one row: [i, j, outcome (0 first, 1 second, 2 tie), how many].
  function kindsOf(votes) {
    const counts = new Map();
    for (const { first, second, winner } of votes) {
      const kind = first < second ? [first, second, winner] : [second, first, winner === 2 ? 2 : 1 - winner];
      counts.set(kind.join(), [...kind, (counts.get(kind.join()) || [0, 0, 0, 0])[3] + 1]);
    }
    return [...counts.values()];
  }

  function posterior(theta, kinds) {
    let value = 0;
    for (const [i, j, outcome, count] of kinds) {
      const { logs, logTotal } = shares(theta, i, j);
      value += count * (logs[outcome] - logTotal);
    }
    return value - PRECISION / 2 * theta.reduce((sum, one) => sum + one * one, 0);
  }

  function derivatives(theta, kinds) {
    const n = theta.length, gradient = theta.map((one) => -PRECISION * one);
    const curvature = theta.map((_, row) => theta.map((__, col) => (row === col ? PRECISION : 0)));
    for (const [i, j, outcome, count] of kinds) {
      const { chances } = shares(theta, i, j), places = [i, j, n - 1];
      const mean = [0, 1, 2].map((term) => chances.reduce((sum, chance, kind) => sum + chance * TERMS[kind][term], 0));
      places.forEach((place, one) => {
        gradient[place] += count * (TERMS[outcome][one] - mean[one]);
        places.forEach((otherPlace, other) => {
          const product = chances.reduce((sum, chance, kind) => sum + chance * TERMS[kind][one] * TERMS[kind][other], 0);
          curvature[place][otherPlace] += count * (product - mean[one] * mean[other]);
        });
      });
    }
    return { gradient, curvature };
  }

  function fit(votes, num) {
    const kinds = kindsOf(votes);
    let theta = new Array(num + 1).fill(0), value = posterior(theta, kinds);
    for (let round = 0; round < STEPS; round += 1) {
      const { gradient, curvature } = derivatives(theta, kinds);
      const step = solve(curvature, gradient.map((one) => [one])).map(([one]) => one);
      let scale = 1, next = theta, then = value;
      do {
        next = theta.map((one, index) => one + scale * step[index]);
        then = posterior(next, kinds);
        scale /= 2;
      } while (then < value && scale > CLOSE);
      if (then < value) { break; }
      theta = next;
      value = then;
      if (Math.max(...step.map(Math.abs)) * 2 * scale < CLOSE) { break; }
    }
    return { theta, kinds };
  }

  // The covariance of the strengths about the mean of all: votes say nothing of what all have in common.
  function covariance({ theta, kinds }, num) {
    const unit = theta.map((_, row) => theta.map((__, col) => (row === col ? 1 : 0)));
    const inverse = solve(derivatives(theta, kinds).curvature, unit);
    const centred = unit.map((row, index) => row.map((one, col) => one - (index < num && col < num ? 1 / num : 0)));
    const times = (one, other) => one.map((row) => other[0].map((_, col) => row.reduce((sum, value, at) => sum + value * other[at][col], 0)));
    return times(times(centred, inverse), centred);
  }

  // Student's t with P(|T| <= t) = CONFIDENCE: its angle, where t = sqrt(degrees) tan(angle), has the density cos^(degrees-1).
  const quantiles = new Map();
  function quantile(degrees) {
    if (degrees > 1e4) { return 1.959964; }
    const key = degrees.toFixed(4);
    if (!quantiles.has(key)) {
      const parts = 20000, sums = [0], width = Math.PI / 2 / parts;
      for (let part = 0; part < parts; part += 1) { sums.push(sums[part] + Math.cos((part + 0.5) * width) ** (degrees - 1)); }
      const wanted = CONFIDENCE * sums[parts], over = sums.findIndex((sum) => sum > wanted);
      const angle = (over - (sums[over] - wanted) / (sums[over] - sums[over - 1])) * width;
      quantiles.set(key, Math.sqrt(degrees) * Math.tan(angle));
    }
    return quantiles.get(key);
  }

  // votes: {first, second: numbers of settings, winner: 0, 1 or 2 for a tie, cell, runs: [run, run]}.
  // Returns for each setting that has votes {index, strength, low, high, numVotes, numRuns, ownVariance, variance},
  // the strongest first.
  ob.strengths = function (votes) {
    const names = [...new Set(votes.flatMap((vote) => [vote.first, vote.second]))], num = names.length;
    if (num === 0) { return []; }
    const place = new Map(names.map((name, index) => [name, index]));
    const coded = votes.map((vote) => ({ ...vote, first: place.get(vote.first), second: place.get(vote.second) }));
    const whole = fit(coded, num), strength = whole.theta.slice(0, num);
    const own = covariance(whole, num).map((row, index) => row[index]).slice(0, num);
    let variance = [...own], degrees = own.map(() => MANY);
    const cells = [...new Set(coded.map((vote) => vote.cell))], groups = Math.min(cells.length, MOST_CELLS);
    if (groups > 1) {
      const groupOf = new Map(cells.map((cell, index) => [cell, index % groups]));
      const without = Array.from({ length: groups }, (_, group) => fit(coded.filter((vote) => groupOf.get(vote.cell) !== group), num).theta);
      own.forEach((value, index) => {
        const mean = without.reduce((sum, theta) => sum + theta[index], 0) / groups;
        const ofCells = (groups - 1) / groups * without.reduce((sum, theta) => sum + (theta[index] - mean) ** 2, 0);
        if (ofCells > value) { degrees[index] = groups - 1; variance[index] = ofCells; }
      });
    }
    const runsOf = names.map(() => new Set());
    coded.forEach((vote) => { runsOf[vote.first].add(vote.runs[0]); runsOf[vote.second].add(vote.runs[1]); });
    const runDegrees = runsOf.reduce((sum, runs) => sum + runs.size - 1, 0);
    if (runDegrees > 0) {
      const runs = runsOf.flatMap((of, index) => [...of].map((run) => [index, run]));
      const at = new Map(runs.map(([index, run], number) => [`${index} ${run}`, number]));
      const alone = fit(coded.map((vote) => ({ ...vote, first: at.get(`${vote.first} ${vote.runs[0]}`), second: at.get(`${vote.second} ${vote.runs[1]}`) })), runs.length).theta;
      let squares = 0;
      runsOf.forEach((of, index) => {
        const values = [...of].map((run) => alone[at.get(`${index} ${run}`)]), mean = values.reduce((sum, one) => sum + one, 0) / values.length;
        squares += values.reduce((sum, one) => sum + (one - mean) ** 2, 0);
      });
      own.forEach((value, index) => {
        const ofRuns = squares / runDegrees / runsOf[index].size, before = variance[index];
        const total = Math.max(before, before + ofRuns - value);
        if (ofRuns > value) { degrees[index] = total ** 2 / (before ** 2 / degrees[index] + ofRuns ** 2 / runDegrees); }
        variance[index] = total;
      });
    }
    return names.map((index, at) => {
      const half = quantile(degrees[at]) * Math.sqrt(variance[at]);
      return { index, strength: strength[at], low: strength[at] - half, high: strength[at] + half, half,
        numVotes: coded.filter((vote) => vote.first === at || vote.second === at).length, numRuns: runsOf[at].size,
        ownVariance: own[at], variance: variance[at] };
    }).sort((one, other) => other.strength - one.strength);
  };

  // About how many more votes until the report would say whom people prefer: 0 once it does, null before anything
  // leads, Infinity where images or trainings of one setting clearly differ so much that no number of votes on these
  // can tell. Else the interval is taken to shrink with the root of the number of votes.
  ob.votesToGo = function (strengths, numVotes) {
    const [first] = strengths;
    if (!first || strengths.length < 2 || first.strength <= 0 || numVotes === 0) { return null; }
    if (first.strength > WIDENED * first.half) { return 0; }
    const allowed = first.variance * (first.strength / first.half / WIDENED) ** 2, lasting = first.variance - first.ownVariance;
    if (lasting > CLEARLY * first.ownVariance && lasting > allowed) { return Infinity; }
    return Math.max(1, Math.ceil(numVotes * (first.variance / allowed - 1)));
  };

  // Which of the pairs [[i, j], ...] to show: mostly the one whose answer tells most (the largest gain of
  // information: close strengths, known badly), among those that may lead; a quarter of the time any pair, so that
  // every one has a chance that does not depend on the votes. What is chosen depends on past votes alone and never on
  // the images, so the likelihood, and with it the estimate, is that of a plain design.
  ob.choosePair = function (votes, pairs, num, random) {
    if (random() < AT_RANDOM || votes.length === 0) { return pairs[Math.floor(random() * pairs.length)]; }
    const fitted = fit(votes, num), spread = covariance(fitted, num), { theta } = fitted;
    const gap = (i, j) => Math.sqrt(Math.max(1e-9, spread[i][i] + spread[j][j] - 2 * spread[i][j]));
    const leader = theta.slice(0, num).indexOf(Math.max(...theta.slice(0, num)));
    const hope = Array.from({ length: num }, (_, i) => (i === leader ? 1 : Math.max(LEAST_HOPE, 2 / (1 + Math.exp(1.7 * (theta[leader] - theta[i]) / gap(leader, i))))));
    const gains = pairs.map(([i, j]) => {
      const [first, second] = shares(theta, i, j).chances, share = first / (first + second);
      return hope[i] * hope[j] * share * (1 - share) * gap(i, j) ** 2;
    });
    const best = Math.max(...gains), close = pairs.filter((_, index) => gains[index] >= 0.98 * best);
    return close[Math.floor(random() * close.length)];
  };
}(window.optbench));
