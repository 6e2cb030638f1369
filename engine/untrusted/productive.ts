/** Whether a grammar has a finite text, as XGrammar prints compiled grammars. */

/** Rules of a printed grammar: a string, a class of characters, the name of a rule, or a sign. */
const TOKEN = /"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]\*?|[\w.-]+|\(=|[()|]/gs;

/** An alternative of a rule: the names of the rules in it. */
type Alternative = readonly string[];

/**
 * Whether some finite text follows the rule `root`. A rule does if, in one of its alternatives, all rules do: the
 * productive symbols of a context-free grammar. Strings and classes of characters always do.
 *
 * @param text a grammar as `Grammar.toString` returns it: a rule per line, `name ::= ((…) | (…))`, perhaps with
 *   lookahead `(=…)`. Rules of another form, such as `TagDispatch`, count as productive.
 */
export function hasFiniteText(text: string): boolean {
  const pending = new Map<string, readonly Alternative[]>();
  for (const line of text.split("\n")) {
    const [, name, body] = /^(\S+) ::= (\(.*)$/.exec(line) ?? [];
    if (name !== undefined) pending.set(name, alternativesOf(body!));
  }
  for (let before = -1; before !== pending.size;) {
    before = pending.size;
    for (const [name, alternatives] of pending) {
      const ends = alternatives.some((rules) =>
        rules.every((rule) => !pending.has(rule))
      );
      if (ends) pending.delete(name);
    }
  }
  return !pending.has("root");
}

/** The alternatives of a body `("" | (a b)) (=(c))`. The lookahead repeats what other rules demand. */
function alternativesOf(body: string): Alternative[] {
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
