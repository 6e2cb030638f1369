/** Whether a grammar has a finite text, as XGrammar prints compiled grammars. */

/** Rules of a printed grammar: a string, a class of characters, the name of a rule, or a sign. */
const TOKEN = /"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]\*?|[\w.-]+|\(=|[()|]/gs;

/** An alternative of a rule, and the number of rules in it that may have no finite text. */
interface Alternative {
  readonly name: string;
  missing: number;
}

/**
 * Whether some finite text follows the rule `root`. A rule does if, in one of its alternatives, all rules do: the
 * productive symbols of a context-free grammar. Strings and classes of characters always do.
 *
 * @param text a grammar as `Grammar.toString` returns it: a rule per line, `name ::= ((…) | (…))`, perhaps with
 *   lookahead `(=…)`. Rules of another form, such as `TagDispatch`, count as productive.
 */
export function hasFiniteText(text: string): boolean {
  const pending = new Set<string>();
  const bodies: [string, string][] = [];
  for (const line of text.split("\n")) {
    const [, name, body] = /^(\S+) ::= (\(.*)$/.exec(line) ?? [];
    if (name === undefined) continue;
    pending.add(name);
    bodies.push([name, body!]);
  }
  /** The alternatives that contain a pending rule. */
  const users = new Map<string, Alternative[]>();
  const ready: string[] = [];
  for (const [name, body] of bodies) {
    for (const rules of alternativesOf(body)) {
      const missing = new Set(rules.filter((rule) => pending.has(rule)));
      if (missing.size === 0) ready.push(name);
      const alternative = { name, missing: missing.size };
      for (const rule of missing) {
        const others = users.get(rule);
        if (others) others.push(alternative);
        else users.set(rule, [alternative]);
      }
    }
  }
  for (let name = ready.pop(); name !== undefined; name = ready.pop()) {
    if (!pending.delete(name)) continue;
    for (const alternative of users.get(name) ?? []) {
      if (--alternative.missing === 0) ready.push(alternative.name);
    }
  }
  return !pending.has("root");
}

/** The names of the rules in each alternative of a body `("" | (a b)) (=(c))`. The lookahead repeats what other rules demand. */
function alternativesOf(body: string): readonly (readonly string[])[] {
  const alternatives: string[][] = [[]];
  let depth = 0;
  for (const [token] of body.matchAll(TOKEN)) {
    if (token === "(=") break;
    if (token === "(") depth++;
    else if (token === ")") depth--;
    else if (token === "|" && depth === 1) alternatives.push([]);
    else if (/^\w/.test(token)) alternatives.at(-1)!.push(token);
  }
  return alternatives;
}
