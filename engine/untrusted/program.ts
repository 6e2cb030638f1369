/**
 * The program of a process that runs untrusted text: chat templates, the regular expressions of tokenizers, and models in
 * plans. As text: it starts without the loaders of this process, so it is plain JavaScript. It takes
 * `{ task, args }` and answers with `{ value }` or `{ error }`.
 */
export const PROGRAM = `
"use strict";
const [, tokenizers, jinja, compiled] = process.argv;
let opened;
const TASKS = {
  openTokenizer: (tokenizer, config) => {
    const { Tokenizer } = require(tokenizers);
    opened = new Tokenizer(tokenizer, config);
  },
  encode: (text, special) => opened.encode(text, { add_special_tokens: special }).ids,
  decode: (ids, skip) => ids.length === 0 ? "" : opened.decode(ids, { skip_special_tokens: skip }),
  openTemplate: (source) => {
    const { Template } = require(jinja);
    opened = new Template(source);
  },
  render: (values) => opened.render(values),
  whyNotCompiled: async (plan) => (await import(compiled)).whyNotCompiled(plan),
};
process.on("message", async ({ task, args }) => {
  let answer;
  try {
    answer = { value: await TASKS[task](...args) };
  } catch (error) {
    answer = { error: String(error instanceof Error ? error.message : error) };
  }
  process.send(answer);
});
`;
