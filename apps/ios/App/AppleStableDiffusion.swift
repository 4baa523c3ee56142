import CoreGraphics
import CoreML
import Foundation
import KdcCore
import KdcCoreML
import StableDiffusion

/// Apple's own pipeline over the same packages: for SD-size bundles whose sampler it has.
enum AppleStableDiffusion {
    /// It knows epsilon, scaled-linear betas and these samplers; no few-step ones.
    static func fits(_ spec: PipelineSpec) -> Bool {
        spec.latent.first == 4 && spec.predicts == "epsilon" && ["pndm", "dpmpp_2m"].contains(spec.sampler)
    }

    static func draw(
        _ request: Request, _ bundle: VerifiedBundle, _ units: ComputeUnits, _ lowMemory: Bool,
        cancelled: @escaping () -> Bool, progress: @escaping (Double) -> Void
    ) throws -> CGImage? {
        let spec = bundle.manifest.pipeline
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units == .cpu ? .cpuOnly : units == .gpu ? .cpuAndGPU : .cpuAndNeuralEngine
        let pipeline = try StableDiffusionPipeline(
            resourcesAt: CompiledModels(bundle).resources(), controlNet: [], configuration: configuration,
            disableSafety: true, reduceMemory: lowMemory)
        try pipeline.loadResources()
        var settings = StableDiffusionPipeline.Configuration(prompt: request.prompt)
        settings.negativePrompt = request.negative
        settings.seed = request.seed
        settings.stepCount = request.steps ?? spec.steps
        settings.guidanceScale = Float(request.guidance ?? spec.guidance)
        settings.schedulerType = spec.sampler == "pndm" ? .pndmScheduler : .dpmSolverMultistepScheduler
        settings.rngType = .numpyRNG
        settings.decoderScaleFactor = Float(spec.latentScaling)
        let images = try pipeline.generateImages(configuration: settings) { step in
            progress(Double(step.step) / Double(step.stepCount))
            return !cancelled()
        }
        if cancelled() { throw Problem.cancelled }
        return images.first ?? nil
    }
}
