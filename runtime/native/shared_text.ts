/** C functions that differ only in constants, compiled once. */

import { cachedIn } from "../../spec/bounded_cache.ts";

/** Minimum characters of a text that functions share: shorter ones take less time to compile than a call costs. */
const MIN_CHARACTERS = 1 << 14;

/** Maximum constants that differ between functions with one text. */
const MAX_PARAMETERS = 4;

/** Lines whose constants determine the code: bounds and steps of loops, divisors, and words of registers. */
const FIXED =
  /^\s*(for|while|do|UNROLL|PRAGMA)\b|[/%]|div|rem|v_lookup|v_entry/;

/** A place in a template. */
const PLACE = "\0";

/** A constant of 32 bits outside of indices of registers. */
const CONSTANT = /(?<![[\w)])\b\d+u\b/g;

/** A text with a place for each constant that may differ. */
interface Template {
  /** The text between the places. */
  readonly key: string;
  readonly constants: readonly string[];
}

/** Functions with one text. */
interface Group {
  readonly names: string[];
  readonly templates: Template[];
}

function templateOf(text: string): Template {
  const constants: string[] = [];
  const key = text.split("\n").map((line) =>
    FIXED.test(line) ? line : line.replace(CONSTANT, (constant) => {
      constants.push(constant);
      return PLACE;
    })
  ).join("\n");
  return { key, constants };
}

/** Constants by function, for each place of their template. */
function columnsOf(templates: readonly Template[]): string[] {
  return templates[0]!.constants.map((_, i) =>
    templates.map(({ constants }) => constants[i]!).join()
  );
}

/**
 * Groups functions whose texts are long and differ only in a few constants outside of loop bounds and divisions.
 * `texts`: parameters and body by name.
 */
export function groupsOfText(
  texts: ReadonlyMap<string, string>,
): readonly (readonly string[])[] {
  const groups = new Map<string, Group[]>();
  for (const [name, text] of texts) {
    const template = text.length < MIN_CHARACTERS
      ? { key: text, constants: [] }
      : templateOf(text);
    const same = cachedIn(groups, template.key, { create: () => [] });
    const found = same.find(({ templates }) =>
      parametersOf([...templates, template]).size <= MAX_PARAMETERS
    );
    if (found) {
      found.names.push(name);
      found.templates.push(template);
    } else same.push({ names: [name], templates: [template] });
  }
  return [...groups.values()].flat().map(({ names }) => names);
}

/** The columns of constants that differ. */
function parametersOf(templates: readonly Template[]): ReadonlySet<string> {
  return new Set(
    columnsOf(templates).filter((column) => {
      const [first, ...rest] = column.split(",");
      return rest.some((constant) => constant !== first);
    }),
  );
}

/** Prints the functions of a group, which call one with their constants as further arguments. */
export function printGroup(
  names: readonly string[],
  textOf: (name: string) => string,
): string {
  const texts = names.map(textOf);
  const [first] = names as [string];
  if (names.length === 1) return `KERNEL ${first}${texts[0]!}`;
  const templates = texts.map(templateOf);
  const parameters = [...parametersOf(templates)];
  const columns = columnsOf(templates);
  let place = 0;
  const body = templates[0]!.key.replaceAll(PLACE, () => {
    const column = columns[place++]!;
    const parameter = parameters.indexOf(column);
    return parameter < 0 ? column.split(",")[0]! : `constant_${parameter}`;
  });
  const end = body.indexOf(")");
  const head = body.slice(0, end);
  const given = head.slice(1).split(",").map((one) => /\w+$/.exec(one)![0]);
  const more = parameters.map((_, i) => `, unsigned constant_${i}`).join("");
  const shared = `${first}_shared`;
  return [
    `static __attribute__((noinline)) KERNEL ${shared}${head}${more}${
      body.slice(end)
    }`,
    ...names.map((name, i) => {
      const constants = parameters.map((column) => column.split(",")[i]!);
      const values = [...given, ...constants].join(", ");
      return `KERNEL ${name}${head}) { ${shared}(${values}); }`;
    }),
  ].join("\n");
}
