import Foundation

/// What runs the networks; Core ML in the app, anything in a test. B is 1, or 2 under guidance: unconditional first.
public protocol Networks {
    /// What ran, for the person to see.
    var provider: String { get }

    /// B rows of ids to B·T·D hidden states, row by row.
    func encode(_ ids: [[Int]]) throws -> [Float]

    /// B·C·H·W samples in unit variance and B·T·D text to the B·C·H·W prediction.
    func predict(_ samples: [Float], timestep: Float, text: [Float]) throws -> [Float]

    /// C·H·W latents to a picture, 3·height·width, -1 to 1.
    func decode(_ latents: [Float]) throws -> [Float]
}

/// What to draw; nil is the bundle's own value.
public struct Request {
    public var prompt: String
    public var seed: UInt32
    public var steps: Int?
    public var guidance: Double?
    public var negative: String

    public init(_ prompt: String, seed: UInt32 = 0, steps: Int? = nil, guidance: Double? = nil, negative: String = "") {
        (self.prompt, self.seed, self.steps, self.guidance, self.negative) = (prompt, seed, steps, guidance, negative)
    }
}

/// RGB, row by row; `notice` is for the person who typed.
public struct Picture {
    public let width: Int
    public let height: Int
    public let rgb: [UInt8]
    public let notice: String?
}

/// Text to picture: tokenize, encode, denoise, decode.
public struct Pipeline {
    public let spec: PipelineSpec
    public let tokenizer: Tokenizer
    public let networks: Networks
    public let schedule: Schedule

    public init(_ spec: PipelineSpec, _ tokenizer: Tokenizer, _ networks: Networks) {
        (self.spec, self.tokenizer, self.networks, schedule) = (spec, tokenizer, networks, Schedule(spec.betas))
    }

    /// `cancelled` is asked before every step; then Problem.cancelled is thrown. `progress` has steps done and in all.
    public func generate(
        _ request: Request, cancelled: @escaping () -> Bool = { false }, progress: (Int, Int) -> Void = { _, _ in }
    ) throws -> Picture {
        func check() throws {
            if cancelled() { throw Problem.cancelled }
        }
        try check()
        let guidance = request.guidance ?? spec.guidance
        let encoded = texts(request.prompt, request.negative, guidance).map { tokenizer($0) }
        let plan = try Plan(spec.sampler, schedule, steps: request.steps ?? spec.steps)
        let text = try networks.encode(encoded.map { $0.ids })
        progress(0, plan.sigmas.count)
        var latents: [Float] = []
        let denoise = denoiser(text, guidance)
        let noise = Noise(seed: request.seed)
        let start = mix([(plan.start, noise(spec.latentSize))])
        let watched: Denoise = { x, sigma in try check(); return try denoise(x, sigma) }
        try Samplers.sample(spec.sampler, watched, start, plan, noise) { step in
            latents = step.latents
            progress(step.index + 1, step.total)
        }
        try check()
        return Picture(width: spec.width, height: spec.height, rgb: try decode(latents), notice: encoded.last?.notice)
    }

    /// Guidance 1 needs no unconditional half.
    public func texts(_ prompt: String, _ negative: String, _ guidance: Double) -> [String] {
        guidance == 1 ? [prompt] : [negative, prompt]
    }

    /// x0 is affine in every prediction, so guiding the prediction guides x0.
    public func denoiser(_ text: [Float], _ guidance: Double) -> Denoise {
        let networks = networks
        let network: Denoise = { x, timestep in
            if guidance == 1 { return try networks.predict(x, timestep: Float(timestep), text: text) }
            let both = try networks.predict(x + x, timestep: Float(timestep), text: text)
            return mix([(1 - guidance, Array(both.prefix(x.count))), (guidance, Array(both.suffix(x.count)))])
        }
        return KdcCore.denoiser(network, predicts: spec.predicts, schedule)
    }

    /// RGB bytes, row by row; Problem.cannotRun where the networks gave no numbers.
    public func decode(_ latents: [Float]) throws -> [UInt8] {
        let sample = try networks.decode(mix([(1 / spec.latentScaling, latents)]))
        let size = spec.width * spec.height
        guard sample.allSatisfy({ $0.isFinite }) else {
            throw Problem.cannotRun(
                "The network gave no picture on \(networks.provider). Choose another compute unit, or another bundle."
            )
        }
        return (0..<3 * size).map { i in
            let value = sample[i % 3 * size + i / 3]
            return UInt8((min(max(value / 2 + 0.5, 0), 1) * 255).rounded(.toNearestOrEven))
        }
    }
}
