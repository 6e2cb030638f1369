// Whether a printed grammar has a finite text.

import t from "tap";
import { hasFiniteText } from "../engine/untrusted/productive.ts";

t.test("a rule has a finite text if all rules of one alternative do", (t) => {
  const cases: [string, boolean][] = [
    ['root ::= (("a"))', true],
    ["root ::= ((root))", false],
    ['root ::= (("a" root) | ([a-z]))', true],
    ['root ::= (("a" b))\nb ::= ((root) | (b))', false],
    ['root ::= ((b b))\nb ::= ((c) | (b))\nc ::= (("root"))', true],
    ['root ::= ((b c))\nb ::= (("a"))\nc ::= ((b c))', false],
    ["root ::= ((b))\nb ::= TagDispatch(root)", true],
    ['root ::= (("a")) (=(root))', true],
  ];
  for (const [text, finite] of cases) {
    t.equal(hasFiniteText(text), finite, text);
  }
  t.end();
});

t.test("each rule of a long grammar is read once", (t) => {
  // Each rule needs the next: repeated passes over the rules would take 20 billion steps.
  const size = 200_000;
  const chain = Array.from(
    { length: size },
    (_, i) => `${i ? `r${i}` : "root"} ::= ((r${i + 1} r${i + 1}))`,
  );
  t.equal(hasFiniteText([...chain, `r${size} ::= (("a"))`].join("\n")), true);
  t.equal(hasFiniteText([...chain, `r${size} ::= ((root))`].join("\n")), false);
  t.end();
});
