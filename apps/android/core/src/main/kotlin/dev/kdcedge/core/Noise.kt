package dev.kdcedge.core

import kotlin.math.ln
import kotlin.math.sqrt

/** MT19937, seeded by init_genrand, and the polar method: numpy's RandomState, as float32. `seed` is 32 bits. */
class Noise(seed: Long) {
    private val state = IntArray(624)
    private var index = 624
    private var kept = Double.NaN // of each pair one number is kept for the next call

    init {
        require(seed in 0..0xFFFFFFFFL) { "a seed is between 0 and 4294967295, not $seed" }
        state[0] = seed.toInt()
        for (i in 1 until 624) state[i] = 1812433253 * (state[i - 1] xor (state[i - 1] ushr 30)) + i
    }

    operator fun invoke(count: Int) = FloatArray(count) { normal().toFloat() }

    private fun normal(): Double {
        if (!kept.isNaN()) return kept.also { kept = Double.NaN }
        while (true) {
            val a = 2 * uniform() - 1
            val b = 2 * uniform() - 1
            val square = a * a + b * b
            if (square > 0 && square < 1) {
                val factor = sqrt(-2 * ln(square) / square)
                kept = factor * a
                return factor * b
            }
        }
    }

    private fun uniform(): Double {
        val high = word() ushr 5
        val low = word() ushr 6
        return (high * 67108864.0 + low) / 9007199254740992.0
    }

    private fun word(): Int {
        if (index == 624) twist()
        var y = state[index++]
        y = y xor (y ushr 11)
        y = y xor ((y shl 7) and 0x9D2C5680.toInt())
        y = y xor ((y shl 15) and 0xEFC60000.toInt())
        return y xor (y ushr 18)
    }

    private fun twist() {
        for (i in 0 until 624) {
            val y = (state[i] and Int.MIN_VALUE) or (state[(i + 1) % 624] and Int.MAX_VALUE)
            state[i] = state[(i + 397) % 624] xor (y ushr 1) xor (if (y and 1 == 1) 0x9908B0DF.toInt() else 0)
        }
        index = 0
    }
}
