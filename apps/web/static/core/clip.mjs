// CLIP's byte-pair tokenizer: that of @huggingface/tokenizers over the bundle's tokenizer.json, and what makes its ids those of
// Python's.

const START = "<|startoftext|>", END = "<|endoftext|>";
const WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"; // of GPT-2

/**
 * `Model` is the package's Tokenizer. `tokenize(text)` is {ids: BigInt64Array of `tokens`, dropped}: start, the text, end, padding;
 * `dropped` did not fit.
 */
export function clip(Model, data, config, tokens) {
  const model = new Model({ ...data, pre_tokenizer: spelledOut(data.pre_tokenizer) }, config);
  const id = (role, name) => model.token_to_id(config[role]?.content ?? config[role] ?? name);
  const [start, end, pad] = [id("bos_token", START), id("eos_token", END), id("pad_token", END)];
  return (text) => {
    const words = model.encode(lower(text), { add_special_tokens: false }).ids;
    const kept = [start, ...words.slice(0, tokens - 2), end];
    const ids = BigInt64Array.from({ length: tokens }, (_, i) => BigInt(kept[i] ?? pad));
    return { ids, dropped: Math.max(0, words.length - tokens + 2) };
  };
}

/**
 * Python lowers each character by itself, while here a sigma at a word's end becomes another one; and a special token spelled in
 * capitals is none, but the library takes it for one where it stands alone, which a space prevents.
 */
function lower(text) {
  const parts = text.replaceAll("Σ", "σ").split(/(<\|startoftext\|>|<\|endoftext\|>)/);
  return parts.map((part, i) => (i % 2 === 0 && [START, END].includes(part.toLowerCase()) ? ` ${part}` : part)).join("");
}

/** ByteLevel's own pattern takes U+FEFF for white space, as JavaScript does; the library corrects that in a Split's. */
function spelledOut(step) {
  if (step?.type === "Sequence") return { ...step, pretokenizers: step.pretokenizers.map(spelledOut) };
  if (step?.type !== "ByteLevel" || step.use_regex === false) return step;
  const split = { type: "Split", pattern: { Regex: WORDS }, behavior: "Isolated", invert: false };
  return { type: "Sequence", pretokenizers: [split, { ...step, use_regex: false }] };
}
