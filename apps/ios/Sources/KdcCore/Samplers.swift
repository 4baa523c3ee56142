import Foundation

// x = x0 + sigma · noise, as C·H·W numbers; n evaluations of the network

public typealias Denoise = ([Float], Double) throws -> [Float]

/// Sigmas of the training steps, rising; timesteps count from 0, the cleanest.
public struct Schedule {
    public let betas: Betas
    private let sigmas: [Double]

    public init(_ betas: Betas) {
        self.betas = betas
        let power = betas.schedule == "scaled_linear" ? 2.0 : 1.0
        let (first, last) = (pow(betas.start, 1 / power), pow(betas.end, 1 / power))
        var kept = 1.0
        sigmas = (0..<betas.trainSteps).map { i in
            kept *= 1 - pow(first + (last - first) * Double(i) / Double(betas.trainSteps - 1), power)
            return ((1 - kept) / kept).squareRoot()
        }
    }

    var final: Double { betas.setAlphaToOne ? 0 : sigmas[0] }

    /// Linear between two training steps.
    func sigma(_ timestep: Double) -> Double {
        let low = min(max(Int(timestep), 0), sigmas.count - 2)
        return sigmas[low] + (sigmas[low + 1] - sigmas[low]) * min(max(timestep - Double(low), 0), 1)
    }

    /// The inverse: what the network is told.
    public func timestep(_ sigma: Double) -> Double {
        let low = min(max((sigmas.lastIndex { $0 <= sigma } ?? 0), 0), sigmas.count - 2)
        return Double(low) + min(max((sigma - sigmas[low]) / (sigmas[low + 1] - sigmas[low]), 0), 1)
    }

    func timesteps(_ steps: Int) -> [Double] {
        let count = betas.trainSteps
        return (0..<steps).map { i in
            switch betas.spacing {
            case "linspace": return Double(steps - 1 - i) * (Double(count - 1) / Double(max(steps - 1, 1)))
            case "trailing": return even(Double(count) - Double(i) * (Double(count) / Double(steps))) - 1
            default: return Double((steps - 1 - i) * (count / steps) + betas.stepsOffset)
            }
        }
    }
}

/// Evaluation i is at sigmas[i], its step starts at sources[i] and lands on targets[i]; x begins as noise · start.
public struct Plan {
    public let timesteps: [Double]
    public let sigmas: [Double]
    public var sources: [Double]
    public var targets: [Double]
    public let start: Double

    public init(_ sampler: String, _ schedule: Schedule, steps: Int) throws {
        guard (1...(sampler == "lcm" ? 50 : schedule.betas.trainSteps - 1)).contains(steps) else {
            throw Problem.cannotRun("\(steps) steps are not possible. Choose fewer, or at least one.")
        }
        let stride = Double(schedule.betas.trainSteps / steps)
        let spacing = schedule.betas.spacing
        var spaced: [Double]
        switch sampler {
        case "lcm": spaced = (0..<steps).map { Double((50 - $0 * 50 / steps) * (schedule.betas.trainSteps / 50) - 1) }
        case "dpmpp_2m": spaced = Array(schedule.timesteps(spacing == "trailing" ? steps : steps + 1).prefix(steps))
        default: spaced = schedule.timesteps(steps)
        }
        if sampler != "euler" { spaced = spaced.map(even) }
        if sampler == "pndm", steps > 1 { spaced.insert(spaced[1], at: 1) }
        timesteps = spaced
        sigmas = spaced.map(schedule.sigma)
        sources = sigmas
        targets = Array(sigmas.dropFirst()) + [0]
        if sampler == "ddim" || sampler == "pndm" {
            targets = spaced.map { $0 >= stride ? schedule.sigma($0 - stride) : schedule.final }
        }
        if sampler == "pndm", steps > 1 {
            sources[1] = schedule.sigma(spaced[1] + stride)
            targets[1] = sigmas[1]
        }
        start = sampler == "euler" && spacing != "leading" ? sigmas[0] : hypot(1, sigmas[0])
    }
}

/// After step `index` of `total`: x at noise level `sigma`.
public struct Step {
    public let index: Int
    public let total: Int
    public let sigma: Double
    public let x: [Float]

    /// In unit variance: what the decoder takes after the last step.
    public var latents: [Float] { mix([(1 / hypot(1, sigma), x)]) }
}

public enum Samplers {
    public static let names = ["euler", "ddim", "dpmpp_2m", "pndm", "lcm"]

    /// Calls `each` after every step; what it throws ends the picture.
    public static func sample(
        _ sampler: String, _ denoise: Denoise, _ x: [Float], _ plan: Plan, _ noise: Noise, each: (Step) throws -> Void
    ) throws {
        let told: (Int, [Float]) throws -> Void = { i, x in
            try each(Step(index: i, total: plan.sigmas.count, sigma: plan.targets[i], x: x))
        }
        switch sampler {
        case "euler", "ddim": try euler(denoise, x, plan, told)
        case "dpmpp_2m": try dpmpp2m(denoise, x, plan, told)
        case "pndm": try pndm(denoise, x, plan, told)
        case "lcm": try lcm(denoise, x, plan, noise, told)
        default: throw Problem.damaged("This app has no sampler '\(sampler)'. Update the app.")
        }
    }

    private static func euler(
        _ denoise: Denoise, _ start: [Float], _ plan: Plan, _ each: (Int, [Float]) throws -> Void
    ) throws {
        var (x, level) = (start, plan.sigmas[0])
        for (i, sigma) in plan.sigmas.enumerated() {
            x = moved(x, level, sigma)
            let step = (plan.targets[i] - sigma) / sigma
            x = mix([(1 + step, x), (-step, try denoise(x, sigma))])
            level = plan.targets[i]
            try each(i, x)
        }
    }

    private static func dpmpp2m(
        _ denoise: Denoise, _ start: [Float], _ plan: Plan, _ each: (Int, [Float]) throws -> Void
    ) throws {
        var x = start
        var previous: (x0: [Float], h: Double)?
        for (i, sigma) in plan.sigmas.enumerated() {
            let target = plan.targets[i]
            let x0 = try denoise(x, sigma)
            var ahead = x0
            if target > 0 {
                let h = log(sigma / target)
                if let last = previous { ahead = mix([(1 + 0.5 * h / last.h, x0), (-0.5 * h / last.h, last.x0)]) }
                previous = (x0, h)
            }
            x = mix([(target / sigma, x), (1 - target / sigma, ahead)])
            try each(i, x)
        }
    }

    private static func pndm(
        _ denoise: Denoise, _ start: [Float], _ plan: Plan, _ each: (Int, [Float]) throws -> Void
    ) throws {
        var slopes: [[Float]] = [] // newest first
        var (x, level) = (start, plan.sigmas[0])
        for (i, sigma) in plan.sigmas.enumerated() {
            x = moved(x, level, sigma)
            var slope = mix([(1 / sigma, x), (-1 / sigma, try denoise(x, sigma))])
            if i == 1 {
                slope = mix([(0.5, slope), (0.5, slopes[0])])
                x = moved(start, plan.sigmas[0], plan.sources[1])
            } else {
                slopes = [slope] + slopes.prefix(3)
                slope = mix(Array(zip(adamsBashforth[slopes.count - 1], slopes)))
            }
            x = mix([(1, x), (plan.targets[i] - plan.sources[i], slope)])
            level = plan.targets[i]
            try each(i, x)
        }
    }

    private static func lcm(
        _ denoise: Denoise, _ start: [Float], _ plan: Plan, _ noise: Noise, _ each: (Int, [Float]) throws -> Void
    ) throws {
        var x = start
        for (i, sigma) in plan.sigmas.enumerated() {
            let scaled = plan.timesteps[i] * 10
            let skip = 0.25 / (scaled * scaled + 0.25)
            x = mix([(scaled / hypot(scaled, 0.5), try denoise(x, sigma)), (skip / hypot(1, sigma), x)])
            if plan.targets[i] > 0 { x = mix([(1, x), (plan.targets[i], noise(x.count))]) }
            try each(i, x)
        }
    }

    private static let adamsBashforth = [
        [1.0], [3 / 2.0, -1 / 2.0], [23 / 12.0, -16 / 12.0, 5 / 12.0], [55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0],
    ]

    private static func moved(_ x: [Float], _ level: Double, _ sigma: Double) -> [Float] {
        mix([(hypot(1, sigma) / hypot(1, level), x)])
    }
}

/// The denoiser of a network that sees unit variance and predicts epsilon, v or x0.
public func denoiser(_ network: @escaping Denoise, predicts: String, _ schedule: Schedule) -> Denoise {
    { x, sigma in
        let size = hypot(1, sigma)
        let out = try network(mix([(1 / size, x)]), schedule.timestep(sigma))
        switch predicts {
        case "epsilon": return mix([(1, x), (-sigma, out)])
        case "v_prediction": return mix([(1 / (size * size), x), (-sigma / size, out)])
        default: return out
        }
    }
}

/// The sum of number · vector, in double precision.
public func mix(_ terms: [(Double, [Float])]) -> [Float] {
    terms[0].1.indices.map { i in Float(terms.reduce(0) { $0 + $1.0 * Double($1.1[i]) }) }
}

private func even(_ number: Double) -> Double { number.rounded(.toNearestOrEven) }
