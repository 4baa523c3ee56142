import Foundation

/// One stage, measured and judged; `difference` is the largest absolute one.
public struct Verdict {
    public let stage: String
    public let measured: Stored
    public let difference: Double
    public let tolerance: Double

    public var passed: Bool { difference <= tolerance } // NaN fails
}

/// The golden vectors on this device, each stage from golden inputs; docs/conformance.md says what is asked.
public struct Conformance {
    public static let stages = [
        "text_ids", "input_ids", "noise", "timesteps", "sigmas", "last_hidden_state", "latents", "images", "pictures",
    ]

    private let bundle: VerifiedBundle
    private let golden: Golden
    private let told: Pipeline
    private let plan: Plan

    public init(_ bundle: VerifiedBundle, _ pipeline: Pipeline) throws {
        self.bundle = bundle
        golden = try Golden(bundle)
        var spec = pipeline.spec
        spec.sampler = golden.sampler
        told = Pipeline(spec, pipeline.tokenizer, pipeline.networks)
        plan = try Plan(golden.sampler, told.schedule, steps: golden.steps)
    }

    /// Stage by stage; `each` hears of them as they are done.
    public func run(each: (Verdict) -> Void = { _ in }) throws -> [Verdict] {
        try Conformance.stages.map { stage in
            let verdict = try judge(stage, measure(stage))
            each(verdict)
            return verdict
        }
    }

    /// What `kdc-edge conformance <bundle> --results` reads.
    public func results(app: String, _ verdicts: [Verdict]) -> String {
        let stages = verdicts.map { "    \(Json.quote($0.stage)): \(Conformance.json($0.measured))" }.joined(separator: ",\n")
        return "{\n  \"format\": 1,\n  \"bundle\": \"\(bundle.manifest.id)\",\n  \"app\": \(Json.quote(app)),\n"
            + "  \"stages\": {\n\(stages)\n  }\n}\n"
    }

    private func measure(_ stage: String) throws -> Stored {
        let prompts = golden.prompts.indices
        switch stage {
        case "text_ids": return try ids(stage, golden.texts)
        case "input_ids":
            return try ids(stage, golden.prompts.flatMap { told.texts($0, golden.negative, golden.guidance) })
        case "noise": return try floats(golden.get(stage).shape, prompts.flatMap { noise($0)(told.spec.latentSize) })
        case "timesteps": return floats([plan.sigmas.count], plan.sigmas.map { Float(told.schedule.timestep($0)) })
        case "sigmas": return floats([plan.targets.count], plan.targets.map { Float($0) })
        case "last_hidden_state": return try floats(golden.get(stage).shape, prompts.flatMap { try hidden($0).last ?? [] })
        case "latents": return try floats(golden.get(stage).shape, prompts.flatMap { try latents($0) })
        case "images": return try pictures(prompts.map { try told.decode(lastLatents($0)) })
        default: return try pictures(prompts.map { try picture($0) })
        }
    }

    private func judge(_ stage: String, _ measured: Stored) throws -> Verdict {
        let array = stage == "pictures" ? "images" : stage
        let wanted = try golden.get(array)
        let tolerance: Double
        switch array {
        case "text_ids", "input_ids", "noise": tolerance = 0
        case "timesteps", "sigmas": tolerance = 1e-6 * (wanted.values.map { abs($0) }.max() ?? 0)
        default:
            guard let stored = golden.tolerances[array] else {
                throw Problem.damaged("golden.json has no tolerance for \(array).")
            }
            tolerance = stored
        }
        let same = measured.shape == wanted.shape
        let differences = same ? zip(measured.values, wanted.values).map { abs($0 - $1) } : [.nan]
        let difference = differences.contains { $0.isNaN } ? .nan : differences.max() ?? 0
        return Verdict(stage: stage, measured: measured, difference: difference, tolerance: tolerance)
    }

    /// B rows of T·D.
    private func hidden(_ p: Int) throws -> [[Float]] {
        let flat = try golden.get("input_ids").row(p).map { Int($0) }
        let rows = stride(from: 0, to: flat.count, by: told.spec.tokens).map { Array(flat[$0..<$0 + told.spec.tokens]) }
        let all = try told.networks.encode(rows)
        let size = all.count / rows.count
        return rows.indices.map { Array(all[$0 * size..<($0 + 1) * size]) }
    }

    private func latents(_ p: Int) throws -> [Float] {
        let text = try hidden(p).dropLast().flatMap { $0 } + golden.get("last_hidden_state").row(p).map { Float($0) }
        let source = noise(p)
        _ = source(told.spec.latentSize)
        let start = mix([(plan.start, try golden.get("noise").row(p).map { Float($0) })])
        var found: [Float] = []
        try Samplers.sample(golden.sampler, told.denoiser(text, golden.guidance), start, plan, source) { found += $0.latents }
        return found
    }

    private func picture(_ p: Int) throws -> [UInt8] {
        try told.generate(
            Request(
                golden.prompts[p], seed: golden.seed + UInt32(p), steps: golden.steps, guidance: golden.guidance,
                negative: golden.negative)
        ).rgb
    }

    private func lastLatents(_ p: Int) throws -> [Float] {
        try golden.get("latents").row(p).suffix(told.spec.latentSize).map { Float($0) }
    }

    private func noise(_ p: Int) -> Noise { Noise(seed: golden.seed + UInt32(p)) }

    private func ids(_ stage: String, _ texts: [String]) throws -> Stored {
        let values = texts.flatMap { told.tokenizer($0).ids.map { Double($0) } }
        return Stored(dtype: "I64", shape: try golden.get(stage).shape, values: values)
    }

    private func floats(_ shape: [Int], _ values: [Float]) -> Stored {
        Stored(dtype: "F32", shape: shape, values: values.map { Double($0) })
    }

    private func pictures(_ all: [[UInt8]]) -> Stored {
        let shape = [all.count, told.spec.height, told.spec.width, 3]
        return Stored(dtype: "U8", shape: shape, values: all.flatMap { $0.map { Double($0) } })
    }

    /// dtype, shape and little-endian bytes in base64.
    private static func json(_ array: Stored) -> String {
        let names = ["I64": "int64", "F32": "float32", "U8": "uint8"]
        let bytes = array.values.flatMap { value -> [UInt8] in
            switch array.dtype {
            case "I64": return withUnsafeBytes(of: Int64(value).littleEndian) { Array($0) }
            case "F32": return withUnsafeBytes(of: Float(value).bitPattern.littleEndian) { Array($0) }
            default: return [UInt8(value)]
            }
        }
        let data = Data(bytes).base64EncodedString()
        return "{\"dtype\": \"\(names[array.dtype] ?? "")\", \"shape\": \(array.shape), \"data\": \"\(data)\"}"
    }
}
