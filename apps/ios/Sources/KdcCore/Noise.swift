import Foundation

/// MT19937, seeded by init_genrand, and the polar method: numpy's RandomState, as float32.
public final class Noise {
    private var state = [UInt32](repeating: 0, count: 624)
    private var index = 624
    private var kept: Double? // of each pair one number is kept for the next call

    public init(seed: UInt32) {
        state[0] = seed
        for i in 1..<624 { state[i] = 1_812_433_253 &* (state[i - 1] ^ (state[i - 1] >> 30)) &+ UInt32(i) }
    }

    public func callAsFunction(_ count: Int) -> [Float] { (0..<count).map { _ in Float(normal()) } }

    private func normal() -> Double {
        if let number = kept {
            kept = nil
            return number
        }
        while true {
            let a = 2 * uniform() - 1
            let b = 2 * uniform() - 1
            let square = a * a + b * b
            if square > 0, square < 1 {
                let factor = (-2 * log(square) / square).squareRoot()
                kept = factor * a
                return factor * b
            }
        }
    }

    private func uniform() -> Double {
        let high = word() >> 5
        let low = word() >> 6
        return (Double(high) * 67_108_864 + Double(low)) / 9_007_199_254_740_992
    }

    private func word() -> UInt32 {
        if index == 624 { twist() }
        var y = state[index]
        index += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C_5680
        y ^= (y << 15) & 0xEFC6_0000
        return y ^ (y >> 18)
    }

    private func twist() {
        for i in 0..<624 {
            let y = (state[i] & 0x8000_0000) | (state[(i + 1) % 624] & 0x7FFF_FFFF)
            state[i] = state[(i + 397) % 624] ^ (y >> 1) ^ (y & 1 == 1 ? 0x9908_B0DF : 0)
        }
        index = 0
    }
}
