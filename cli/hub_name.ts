/** Names of models on the hub: `OWNER/NAME`, `OWNER/NAME@REVISION`, `OWNER/NAME/FILE.gguf`. */

/** A model on the hub. */
export interface HubName {
  /** `OWNER/NAME`. */
  readonly repo: string;
  /** Branch, tag or commit. */
  readonly revision: string | undefined;
  /** A GGUF file of the model. */
  readonly file: string | undefined;
}

const PART = "[A-Za-z0-9_][\\w.-]*";

const NAME = new RegExp(
  `^(${PART}/${PART}?)(?:@(${PART}(?:/${PART}?)*?))?(?:/(${PART}\\.gguf))?$`,
  "i",
);

/** File name endings that no model name has. */
const FILE = /\.([cm]?[jt]sx?|json|gguf|safetensors|txt)$/i;

/** Reads a model name from a text. Undefined for other forms. */
export function parseHubName(text: string): HubName | undefined {
  const [, repo, revision, file] = NAME.exec(text) ?? [];
  return repo === undefined || FILE.test(repo) || /[^/]\.\.|\.git$/.test(repo)
    ? undefined
    : { repo, revision, file };
}
