/** Reference implementations of kernels in JavaScript: f32 where bits are compared, f64 elsewhere. */

/** Sums n products in f64 in the order of the numerics contract: blocks of 32. */
export function blockedDot(n: number, product: (k: number) => number): number {
  let total = 0;
  for (let start = 0; start < n; start += 32) {
    let block = 0;
    for (let k = start; k < Math.min(start + 32, n); k++) block += product(k);
    total += block;
  }
  return total;
}

/** Multiplies a row [k] by a matrix [k, columns]. Sums as `blockedDot`. */
export function blockedRow(
  row: Float32Array,
  matrix: Float32Array,
  columns: number,
): Float64Array {
  const total = new Float64Array(columns);
  for (let start = 0; start < row.length; start += 32) {
    const block = new Float64Array(columns);
    for (let k = start; k < Math.min(start + 32, row.length); k++) {
      for (let c = 0; c < columns; c++) {
        block[c]! += row[k]! * matrix[k * columns + c]!;
      }
    }
    for (let c = 0; c < columns; c++) total[c]! += block[c]!;
  }
  return total;
}

/** Softmax of a row in f64. */
export function softmaxOf(row: readonly number[]): number[] {
  const top = Math.max(...row);
  const exps = row.map((x) => Math.exp(x - top));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((e) => e / sum);
}

/** Returns the indices of the k largest values: in descending order, equal values by index. */
export function topIndices(row: readonly number[], k: number): number[] {
  return row.map((_, i) => i)
    .sort((a, b) => row[b]! - row[a]! || a - b)
    .slice(0, k);
}

/** Returns the counts by column and the send row of each choice. `keep`: false for dropped choices. */
export function assignOf(
  column: readonly number[],
  columns: number,
  keep: readonly boolean[],
): { counts: number[]; sendRow: number[] } {
  const counts = new Array<number>(columns).fill(0);
  column.forEach((c, a) => keep[a] && counts[c]!++);
  const next = counts.map((_, c) =>
    counts.slice(0, c).reduce((a, b) => a + b, 0)
  );
  const sendRow = column.map((c, a) => keep[a] ? next[c]!++ : 0xffffffff);
  return { counts, sendRow };
}

/** Attention of one head in f64. `sink`: score of an additional key without a value. */
export function attentionOf(
  q: readonly number[],
  keys: readonly (readonly number[])[],
  { values, scale, sink }: {
    readonly values: readonly (readonly number[])[];
    readonly scale: number;
    readonly sink?: number;
  },
): number[] {
  const scores = keys.map((k) =>
    scale * k.reduce((sum, x, d) => sum + x * q[d]!, 0)
  );
  const weights = softmaxOf(sink === undefined ? scores : [...scores, sink]);
  return q.map((_, d) =>
    values.reduce((sum, v, j) => sum + weights[j]! * v[d]!, 0)
  );
}
