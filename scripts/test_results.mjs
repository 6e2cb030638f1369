/** The tests of a file: their tree in a TAP stream, their counts, and what is printed of them. */

/** Seconds after which a file counts as hanging, even on a busy machine. */
export const TIMEOUT = 3600;

/** Collects the tree of tests from a TAP stream: each point with its inner points. */
export function watch(parser) {
  const points = [];
  let inside;
  parser.on("child", (child) => {
    inside = watch(child);
  });
  parser.on("assert", (result) => {
    points.push({ result, points: inside ?? [] });
    inside = undefined;
  });
  return points;
}

/** Adds the tests among `points` to `counts`. `path` contains the names of the enclosing tests. */
function tally(points, { path, counts }) {
  for (const { result, points: inner } of points) {
    const name = [...path, result.name].join(" > ");
    const failed = counts.failed.length;
    if (inner.some((point) => point.points.length > 0)) {
      tally(inner, { path: [...path, result.name], counts });
      if (result.ok || counts.failed.length > failed) continue;
    }
    if (result.skip || result.todo) {
      const reason = [result.skip, result.todo].find((r) =>
        typeof r === "string"
      );
      counts.skipped.push(`${name}: ${reason || "no reason given"}`);
      continue;
    }
    for (const { result: { skip, name: part } } of inner) {
      if (skip) counts.skipped.push(`${name} > ${part}: ${skip}`);
    }
    if (result.ok) counts.passed++;
    else counts.failed.push({ name, details: failures(result, inner) });
  }
}

/** Returns the failed assertions of a test with their diagnostics. */
function failures(result, inner) {
  const bad = inner.filter((p) => !p.result.ok && !p.result.todo);
  return (bad.length > 0 ? bad.map((p) => p.result) : [result])
    .map((r) => [r.name, ...diagnosis(r.diag)].join("\n"))
    .join("\n");
}

/** Formats the diagnostics of a failed assertion as lines. */
function diagnosis(diag) {
  return Object.entries(diag || {})
    .filter(([key]) => !["at", "test", "tapCaught", "compare"].includes(key))
    .map(([key, value]) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return indent(`${key}:\n${indent(text.trimEnd())}`);
    });
}

function indent(text) {
  return text.replaceAll(/^/gm, "    ");
}

/**
 * Prints the result of a file and returns its counts. `points` and `ended` are its TAP stream, `exit` is the exit code
 * or signal of its process, `seconds` its duration and `worked` its processor seconds.
 */
export function summarise(
  file,
  { points, ended, exit, stderr, seconds, worked },
) {
  const counts = { file, seconds, worked, passed: 0, failed: [], skipped: [] };
  const empty = ["", "no tests found"].includes(ended.plan.skipReason ?? "");
  if (ended.plan.skipAll && !empty) {
    counts.skipped.push(`${file}: ${ended.plan.skipReason}`);
  } else if (points.length > 0 && points.every((p) => p.points.length === 0)) {
    tally([{ result: { ok: ended.ok, name: file }, points }], {
      path: [],
      counts,
    });
  } else {
    tally(points, { path: [file], counts });
  }
  // A file can fail outside of its tests: it crashes, hangs, or runs no test.
  const ran = counts.passed + counts.failed.length + counts.skipped.length;
  if (counts.failed.length === 0 && (!ended.ok || exit !== 0 || ran === 0)) {
    const why = exit === "SIGKILL"
      ? `killed after ${TIMEOUT} s`
      : `ran ${ran} tests, then exit ${exit}`;
    counts.failed.push({ name: file, details: why });
  }
  if (counts.failed.length > 0 && stderr !== "") {
    const lines = stderr.trimEnd().split("\n");
    // A driver may print the same message for every device.
    const text = [...new Set(lines)].join("\n");
    counts.failed.at(-1).details += `\n${indent(text)}`;
  }
  const line = [
    `${counts.passed} passed`,
    counts.failed.length > 0 ? `${counts.failed.length} FAILED` : "",
    counts.skipped.length > 0 ? `${counts.skipped.length} skipped` : "",
  ].filter((part) => part !== "").join(", ");
  console.log(`${file}: ${line} (${time({ seconds, worked })})`);
  for (const { name, details } of counts.failed) {
    console.log(`  FAILED ${name}\n${indent(details)}`);
  }
  for (const name of counts.skipped) console.log(`  skipped ${name}`);
  return counts;
}

/** Formats the duration of files and their processor time. */
export function time({ seconds, worked }) {
  const work = worked > 0 ? `, ${worked.toFixed(1)} s of CPU` : "";
  return `${seconds.toFixed(1)} s${work}`;
}
