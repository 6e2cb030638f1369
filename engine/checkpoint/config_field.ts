/** Fields of config.json that concern the text model. */

/** Returns a field. A model of text and images may have it in `text_config`. Undefined if it is null or missing. */
export function configField(
  config: { readonly [field: string]: unknown },
  field: string,
): unknown {
  const text = config["text_config"];
  const inside = typeof text === "object" && text !== null
    ? (text as typeof config)[field]
    : undefined;
  return config[field] ?? inside ?? undefined;
}
