/** JSON Schemas of documents. `node scripts/schemas.mjs` generates them from the named types. */
// deno-fmt-ignore-file

import type { Schema } from "../spec/document/schema.ts";

/** Schema of `Receipt` in engine/generation/receipt/receipt.ts. */
export const receiptSchema: Schema = {"$schema":"http://json-schema.org/draft-07/schema#","title":"Receipt","type":"object","properties":{"version":{"const":1},
  "model":{"type":"string"},"device":{"type":"string"},"plan":{"type":"object","properties":{"sha256":{"type":"string"},
  "mesh":{"type":"array","items":{"type":"object","properties":{"name":{"type":"string","pattern":"^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$"},
  "size":{"type":"integer","minimum":1,"maximum":4096}},"required":["name","size"],"additionalProperties":false},
  "maxItems":64},"kvCacheDtype":{"enum":["f32","f16","bf16"]},"activations":{"enum":["q8","f32"]},"wire":{"enum":["f32",
  "bf16","fp8"]}},"required":["sha256","mesh"],"additionalProperties":false},"checkpoint":{"type":"object",
  "properties":{"config":{"type":"string"},"tokenizer":{"type":"string"},"weights":{"type":"object","propertyNames":{"type":"string",
  "pattern":"^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$"},"additionalProperties":{"type":"string"}}},
  "required":["config","weights"],"additionalProperties":false},"sequences":{"type":"array","items":{"type":"object",
  "properties":{"prompt":{"type":"array","items":{"type":"integer","minimum":0,"maximum":9007199254740991}},
  "tokens":{"type":"array","items":{"type":"integer","minimum":0,"maximum":9007199254740991}},"sampling":{"type":"object",
  "properties":{"temperature":{"type":"number"},"topK":{"type":"integer","minimum":0,"maximum":9007199254740991},
  "topP":{"type":"number"},"minP":{"type":"number"},"repeatPenalty":{"type":"number"},"presencePenalty":{"type":"number"},
  "frequencyPenalty":{"type":"number"},"bias":{"type":"array","items":{"type":"array","items":[{"type":"integer",
  "minimum":0,"maximum":9007199254740991},{"type":"number"}],"minItems":2,"additionalItems":false}},"seed":{"type":"integer",
  "minimum":0,"maximum":4294967295},"stream":{"type":"integer","minimum":0,"maximum":9007199254740991}},
  "required":["seed","stream"],"additionalProperties":false},"logits":{"type":"array","items":{"type":"array",
  "items":[{"type":"integer","minimum":0,"maximum":9007199254740991},{"type":"string"}],"minItems":2,
  "additionalItems":false}}},"required":["prompt","tokens","sampling","logits"],"additionalProperties":false}}},
  "required":["version","model","device","plan","checkpoint","sequences"],"additionalProperties":false};

/** Schema of `TuningFile` in engine/tune/saved.ts. */
export const tuningSchema: Schema = {"$schema":"http://json-schema.org/draft-07/schema#","title":"Saved tunings","type":"object","properties":{"version":{"const":2},
  "tunings":{"type":"object","propertyNames":{"type":"string","pattern":"^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$"},
  "additionalProperties":{"type":"object","properties":{"matmul":{"$ref":"#/definitions/MatmulTile"},
  "pair":{"$ref":"#/definitions/MatmulTile"},"matmuls":{"type":"object","propertyNames":{"type":"string",
  "pattern":"^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$"},"additionalProperties":{"$ref":"#/definitions/MatmulTile"}},
  "attention":{"type":"integer","minimum":1,"maximum":8}},"required":[],"additionalProperties":false}}},
  "required":["version","tunings"],"additionalProperties":false,"definitions":{"MatmulTile":{"type":"object",
  "properties":{"rows":{"type":"integer","minimum":1,"maximum":64},"columns":{"type":"integer","minimum":1,
  "maximum":64},"lanes":{"type":"integer","minimum":1,"maximum":256},"split":{"type":"integer","minimum":1,
  "maximum":64},"left":{"enum":["registers","workgroup"]},"right":{"enum":["scalar","vector","workgroup"]},
  "vector":{"type":"integer","minimum":1,"maximum":64},"code":{"enum":["large","small"]}},"required":["rows",
  "columns","lanes"],"additionalProperties":false}}};

/** Schema of `SavedTraining` in engine/train/saved.ts. */
export const trainingSchema: Schema = {"$schema":"http://json-schema.org/draft-07/schema#","title":"Saved training","type":"object","properties":{"step":{"type":"integer",
  "minimum":0,"maximum":9007199254740991},"position":{"type":"integer","minimum":0,"maximum":9007199254740991},
  "text":{"type":"string"},"settings":{"type":"object","properties":{"optimizer":{"type":"object","required":["kind"],
  "discriminator":{"propertyName":"kind"},"oneOf":[{"type":"object","properties":{"kind":{"const":"adamW"},
  "betas":{"type":"array","items":{"type":"number"},"minItems":2,"maxItems":2},"epsilon":{"type":"number"},
  "weightDecay":{"type":"number"}},"required":["kind"],"additionalProperties":false},{"type":"object",
  "properties":{"kind":{"const":"sgd"},"momentum":{"type":"number"},"weightDecay":{"type":"number"}},
  "required":["kind"],"additionalProperties":false}]},"schedule":{"type":"object","properties":{"rate":{"type":"number"},
  "warmup":{"type":"number"},"decay":{"type":"number"},"floor":{"type":"number"}},"required":["rate"],
  "additionalProperties":false},"clipNorm":{"type":"number"},"accumulate":{"type":"number"},"biasUpdate":{"type":"number"},
  "dtype":{"enum":["f32","f16","bf16"]},"seed":{"type":"number"},"batch":{"type":"number"},"length":{"type":"number"},
  "lora":{"type":"object","properties":{"rank":{"type":"number"},"alpha":{"type":"number"},"targets":{"type":"array",
  "items":{"type":"string"}}},"required":["rank","alpha","targets"],"additionalProperties":false},"auxiliary":{"type":"number"},
  "balance":{"enum":["layer","together"]},"recompute":{"type":"boolean"},"trainOn":{"enum":["assistant",
  "all"]},"packing":{"type":"boolean"},"samples":{"type":"number"},"maxNewTokens":{"type":"number"},"clip":{"type":"number"},
  "clipHigh":{"type":"number"},"kl":{"type":"number"},"updates":{"type":"number"}},"required":["optimizer",
  "schedule"],"additionalProperties":false},"format":{"const":2},"sha256":{"type":"object","propertyNames":{"type":"string",
  "pattern":"^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$"},"additionalProperties":{"type":"string"}},"optimizerState":{"type":"object",
  "propertyNames":{"type":"string","pattern":"^(?!__proto__$)[^\\u0000-\\u001f\\u007f]+$"},"additionalProperties":{"type":"object",
  "properties":{"shape":{"type":"array","items":{"type":"integer","minimum":0,"maximum":9007199254740991}},
  "slices":{"type":"array","items":{"type":"object","properties":{"file":{"type":"string"},"tensor":{"type":"string"},
  "start":{"type":"array","items":{"type":"integer","minimum":0,"maximum":9007199254740991}},"shape":{"type":"array",
  "items":{"type":"integer","minimum":0,"maximum":9007199254740991}},"sha256":{"type":"string"}},"required":["file",
  "tensor","start","shape","sha256"],"additionalProperties":false}}},"required":["shape","slices"],"additionalProperties":false}}},
  "required":["step","position","text","settings","format","sha256","optimizerState"],"additionalProperties":false};
