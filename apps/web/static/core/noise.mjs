// MT19937, seeded by init_genrand, and the polar method: numpy's RandomState. The same seed is the same noise everywhere.

const WORDS = 624, AHEAD = 397;
export const SEEDS = 2 ** 32;

/** A source of standard normal numbers: `draw(count)` is a Float32Array. */
export function gaussian(seed) {
  const state = new Uint32Array(WORDS);
  state[0] = seed;
  for (let i = 1; i < WORDS; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let index = WORDS, kept = null; // of each pair one number is kept for the next call

  function twist() {
    for (let i = 0; i < WORDS; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % WORDS] & 0x7fffffff);
      state[i] = state[(i + AHEAD) % WORDS] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    index = 0;
  }

  function word() {
    if (index === WORDS) twist();
    let y = state[index++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  const uniform = () => ((word() >>> 5) * 67108864 + (word() >>> 6)) / 9007199254740992;

  function normal() {
    if (kept !== null) {
      const value = kept;
      kept = null;
      return value;
    }
    for (;;) {
      const a = 2 * uniform() - 1, b = 2 * uniform() - 1, square = a * a + b * b;
      if (square > 0 && square < 1) {
        const factor = Math.sqrt((-2 * Math.log(square)) / square);
        kept = factor * a;
        return factor * b;
      }
    }
  }

  return (count) => Float32Array.from({ length: count }, normal);
}
