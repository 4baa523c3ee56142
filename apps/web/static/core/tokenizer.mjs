// The app's tokenizer: CLIP's over the package that the site carries.

import { Tokenizer } from "../vendor/tokenizers.mjs";
import { clip } from "./clip.mjs";

/** (data, config, tokens) → `tokenize`. */
export const tokenizer = clip.bind(null, Tokenizer);
