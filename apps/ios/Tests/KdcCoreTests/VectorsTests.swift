import Foundation
import XCTest

@testable import KdcCore

/// apps/vectors.json: what the library itself says.
final class VectorsTests: XCTestCase {
    /// Of the largest value: x is stored as float32 from step to step.
    let tolerance: Float = 4e-6

    func testTokenizer() throws {
        let tokenizer = try Tokenizer(emoji.appendingPathComponent("tokenizer"), tokens: 77)
        for vector in try vectors().get("tokenizer").items() {
            let text = try vector.get("text").string()
            let encoded = tokenizer(text)
            XCTAssertEqual(encoded.ids, try vector.get("ids").items().map { try $0.int() }, text)
            XCTAssertEqual(encoded.dropped, try vector.get("dropped").int(), text)
        }
    }

    func testNoise() throws {
        for vector in try vectors().get("noise").items() {
            let noise = Noise(seed: UInt32(try vector.get("seed").int()))
            XCTAssertEqual(noise(7), try floats(vector.get("first")))
            XCTAssertEqual(Array(noise(1300).suffix(3)), try floats(vector.get("second")))
        }
    }

    func testSamplers() throws {
        var seen: Set<String> = []
        for vector in try vectors().get("samplers").items() {
            let sampler = try vector.get("sampler").string()
            let schedule = try Schedule(Betas(vector.get("betas")))
            let plan = try Plan(sampler, schedule, steps: vector.get("steps").int())
            XCTAssertEqual(plan.timesteps, try vector.get("timesteps").items().map { try $0.double() })
            let denoise = denoiser(network, predicts: try vector.get("prediction_type").string(), schedule)
            let start = mix([(plan.start, Noise(seed: 3)(12))])
            var found: [[Float]] = []
            try Samplers.sample(sampler, denoise, start, plan, Noise(seed: 5)) { found.append($0.x) }
            let wanted = try vector.get("x").items().map { try floats($0) }
            XCTAssertEqual(found.count, wanted.count)
            for (one, other) in zip(found, wanted) {
                let off = zip(one, other).map { abs($0 - $1) }.max()!
                XCTAssertLessThanOrEqual(off, tolerance * other.map { abs($0) }.max()!, sampler)
            }
            seen.insert(sampler)
        }
        XCTAssertEqual(seen, Set(Samplers.names))
    }

    private func network(_ x: [Float], _ timestep: Double) -> [Float] {
        x.indices.map { i -> Float in
            let ramp: Double = 2 * Double(i) / Double(x.count - 1) - 1
            let sum: Double = 0.7 * Double(x[i]) + 0.3 * ramp + sin(timestep / 150)
            return Float(tanh(sum))
        }
    }

    private func floats(_ json: Json) throws -> [Float] { try json.items().map { Float(try $0.double()) } }
}
