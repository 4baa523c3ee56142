#if canImport(CoreML)
import CoreML
import Foundation
import KdcCore

/// The networks of a Core ML bundle: packages compiled once on this device and kept, loaded for the units asked for.
///
/// With `lowMemory` one component is loaded at a time, and each picture loads them anew. Not for two threads at once.
public final class CoreMLNetworks: Networks {
    public let provider: String
    private let bundle: VerifiedBundle
    private let configuration = MLModelConfiguration()
    private let lowMemory: Bool
    private var loaded: [String: [MLModel]] = [:]

    public init(_ bundle: VerifiedBundle, units: ComputeUnits, lowMemory: Bool) throws {
        (self.bundle, self.lowMemory, provider) = (bundle, lowMemory, units.label)
        configuration.computeUnits = units.value
        if !lowMemory { for name in bundle.manifest.components.keys { _ = try models(name) } }
    }

    public func encode(_ ids: [[Int]]) throws -> [Float] {
        try ids.flatMap { row in
            try run("text_encoder", "last_hidden_state", ["input_ids": row.map { Float($0) }])
        }
    }

    /// The package takes a fixed number of rows: ours go in by that many, the last one repeated to fill it.
    public func predict(_ samples: [Float], timestep: Float, text: [Float]) throws -> [Float] {
        let size = bundle.manifest.pipeline.latentSize
        let rows = samples.count / size
        let width = text.count / rows
        guard let batch = try inputShape("unet", "sample").first else { throw cannot("unet", "it has no sample") }
        var found: [Float] = []
        for first in stride(from: 0, to: rows, by: batch) {
            let some = (first..<first + batch).map { min($0, rows - 1) }
            let out = try run(
                "unet", "noise_pred",
                [
                    "sample": some.flatMap { samples[$0 * size..<($0 + 1) * size] },
                    "timestep": some.map { _ in timestep },
                    "encoder_hidden_states": some.flatMap { channelsFirst(text[$0 * width..<($0 + 1) * width]) },
                ])
            found += out.prefix(min(batch, rows - first) * size)
        }
        return found
    }

    public func decode(_ latents: [Float]) throws -> [Float] { try run("vae_decoder", "image", ["z": latents]) }

    /// (T, D) to (D, 1, T).
    private func channelsFirst(_ text: ArraySlice<Float>) -> [Float] {
        let tokens = bundle.manifest.pipeline.tokens
        let width = text.count / tokens
        return (0..<text.count).map { text[text.startIndex + $0 % tokens * width + $0 / tokens] }
    }

    /// A second half takes the inputs, too, and what the first gives.
    private func run(_ name: String, _ output: String, _ inputs: [String: [Float]]) throws -> [Float] {
        var features: [String: MLFeatureValue] = [:]
        do {
            for model in try models(name) {
                let wanted = model.modelDescription.inputDescriptionsByName
                for (input, data) in inputs where features[input] == nil {
                    if let shape = wanted[input]?.multiArrayConstraint?.shape {
                        features[input] = MLFeatureValue(multiArray: try array(data, shape))
                    }
                }
                let given = try MLDictionaryFeatureProvider(dictionary: features.filter { wanted[$0.key] != nil })
                let found = try model.prediction(from: given)
                for key in found.featureNames { features[key] = found.featureValue(for: key) }
            }
        } catch let problem as Problem {
            throw problem
        } catch {
            throw cannot(name, error.localizedDescription)
        }
        guard let result = features[output]?.multiArrayValue else { throw cannot(name, "it gives no \(output)") }
        return MLShapedArray<Float>(converting: result).scalars
    }

    private func array(_ data: [Float], _ shape: [NSNumber]) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape, dataType: .float32)
        guard array.count == data.count else { throw Problem.damaged("The bundle's packages and manifest disagree on sizes.") }
        array.withUnsafeMutableBufferPointer(ofType: Float.self) { buffer, _ in
            for (i, value) in data.enumerated() { buffer[i] = value }
        }
        return array
    }

    private func inputShape(_ name: String, _ input: String) throws -> [Int] {
        let description = try models(name).first?.modelDescription.inputDescriptionsByName[input]
        return description?.multiArrayConstraint?.shape.map { $0.intValue } ?? []
    }

    private func models(_ name: String) throws -> [MLModel] {
        if let models = loaded[name] { return models }
        if lowMemory { loaded = [:] }
        let compiled = try CompiledModels(bundle).urls(name)
        do {
            let models = try compiled.map { try MLModel(contentsOf: $0, configuration: configuration) }
            loaded[name] = models
            return models
        } catch {
            throw cannot(name, error.localizedDescription)
        }
    }

    private func cannot(_ name: String, _ why: String) -> Problem {
        .cannotRun("The \(name) does not run on \(provider) here (\(why)). Choose another compute unit.")
    }
}
#endif
