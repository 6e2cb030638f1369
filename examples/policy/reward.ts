/** The fraction of words that begin with 's'. */
export function reward(_prompt: string, text: string): number {
  const words = text.toLowerCase().match(/[a-z']+/g) ?? [];
  return words.length === 0
    ? 0
    : words.filter((word) => word.startsWith("s")).length / words.length;
}
