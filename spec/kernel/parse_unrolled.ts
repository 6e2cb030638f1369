/** Reads loops of kernel text that are written out. */

import { expressionOf } from "./parse_expression.ts";
import { type Declaring, freshName } from "./parse_name.ts";
import { KernelText } from "./text.ts";
import type { Stmt } from "./tree.ts";
import { declaredBy, type IterationRange } from "./unroll.ts";

/** `@unroll (r < 4, c < 8 by 2) { … }`: the statements of all turns, one after another; the last variable is the fastest. */
export function unrolled(p: Declaring, statements: () => Stmt[]): Stmt[] {
  const { scanner, scope, turns, registers } = p;
  const start = scanner.next();
  scanner.skip("unroll", "(");
  const token = scanner.peek();
  const hole = token.kind === "hole" ? scanner.hole(token.hole) : undefined;
  if (hole instanceof KernelText) scanner.next();
  const ranges = hole instanceof KernelText
    ? scanner.inside(hole, () => iterationRanges(p))
    : iterationRanges(p);
  scanner.skip(")", "{");
  const { length } = turns;
  turns.push(...ranges.map(({ name }) => ({ name, depth: p.depth })));
  const body = scope.turns(() => {
    for (const { name } of ranges) {
      scope.declare(name, { type: "u32", kind: "turn" });
    }
    return statements();
  });
  turns.length = length;
  scanner.skip("}");
  const all = registers.writeOut(body, ranges);
  if (length > 0) return all;
  for (const { as, is } of declaredBy(all)) {
    if (scope.has(as)) {
      throw scanner.error(
        start,
        `Cannot write out this loop: '${as}' is declared twice. Give it an index`,
      );
    }
    scope.declare(as, is);
  }
  const missing = registers.missing((register) => scope.has(register));
  if (missing === undefined) return all;
  throw scanner.error(
    start,
    `Cannot write out this loop: nothing declares '${missing}'. Count to the number of registers`,
  );
}

/** `r < 4, c < 8 by 2` */
function iterationRanges(p: Declaring): IterationRange[] {
  const { scanner } = p;
  const ranges: IterationRange[] = [];
  const number = (name: string) => {
    const token = scanner.peek();
    const value = expressionOf(p, "u32", `the end of '${name}'`);
    if (value.op === "const" && value.value !== 0) return Number(value.value);
    throw scanner.error(
      token,
      `Cannot write out the turns of '${name}': how many they are is not a positive constant. Give a number`,
    );
  };
  do {
    const { name } = freshName(p);
    scanner.skip("<");
    const end = number(name);
    const by = scanner.nameOf(scanner.peek()) === "by";
    if (by) scanner.skip("by");
    ranges.push({ name, end, step: by ? number(name) : 1 });
  } while (scanner.take(","));
  return ranges;
}
