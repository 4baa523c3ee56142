package dev.kdcedge.core

import kotlin.math.round

/** What runs the networks; onnxruntime in the app, anything in a test. B is 1, or 2 under guidance: unconditional first. */
interface Networks : AutoCloseable {
    /** What ran, for the person to see. */
    val provider: String

    /** (B, T) ids to (B·T·D) hidden states. */
    fun encode(ids: List<IntArray>): FloatArray

    /** (B·C·H·W) samples in unit variance and (B·T·D) text to the (B·C·H·W) prediction. */
    fun predict(samples: FloatArray, timestep: Float, text: FloatArray): FloatArray

    /** (C·H·W) latents to a picture (3·height·width), -1 to 1. */
    fun decode(latents: FloatArray): FloatArray
}

/** What to draw; null is the bundle's own value. */
data class Request(
    val prompt: String,
    val seed: Long = 0,
    val steps: Int? = null,
    val guidance: Double? = null,
    val negative: String = "",
)

/** RGB, row by row; `notice` is for the person who typed. */
class Picture(val width: Int, val height: Int, val rgb: ByteArray, val notice: String?)

/** Text to picture: tokenize, encode, denoise, decode. */
class Pipeline(val spec: PipelineSpec, val tokenizer: Tokenizer, val networks: Networks) {
    val schedule = Schedule(spec.betas)

    /** `cancelled` is asked before every step; then Problem.Cancelled is thrown. `progress` has steps done and in all. */
    fun generate(request: Request, cancelled: () -> Boolean = { false }, progress: (Int, Int) -> Unit = { _, _ -> }): Picture {
        fun check() {
            if (cancelled()) throw Problem.Cancelled()
        }
        check()
        val guidance = request.guidance ?: spec.guidance
        val steps = request.steps ?: spec.steps
        val encoded = texts(request.prompt, request.negative, guidance).map { tokenizer(it) }
        val text = networks.encode(encoded.map { it.ids })
        val plan = Samplers.plan(spec.sampler, schedule, steps)
        progress(0, plan.sigmas.size)
        var latents = FloatArray(0)
        val denoise = denoiser(text, guidance)
        for (step in steps(denoise, Noise(request.seed), plan) { check() }) {
            latents = step.latents
            progress(step.index + 1, step.total)
        }
        check()
        return Picture(spec.width, spec.height, decode(latents), encoded.last().notice)
    }

    /** Guidance 1 needs no unconditional half. */
    fun texts(prompt: String, negative: String, guidance: Double) =
        if (guidance == 1.0) listOf(prompt) else listOf(negative, prompt)

    /** `noise` has given nothing yet. */
    fun steps(denoise: Denoise, noise: Noise, plan: Plan, before: () -> Unit = {}): Sequence<Step> {
        val start = mix(plan.start to noise(spec.latentSize))
        return Samplers.sample(spec.sampler, { x, sigma -> before(); denoise(x, sigma) }, start, plan, noise)
    }

    fun denoiser(text: FloatArray, guidance: Double): Denoise = denoiser(
        { x, timestep ->
            if (guidance == 1.0) networks.predict(x, timestep.toFloat(), text)
            else guided(networks.predict(x + x, timestep.toFloat(), text), guidance)
        },
        spec.predicts, schedule,
    )

    /** x0 is affine in every prediction, so guiding the prediction guides x0. */
    private fun guided(both: FloatArray, guidance: Double): FloatArray {
        val half = both.size / 2
        return mix(1 - guidance to both.copyOfRange(0, half), guidance to both.copyOfRange(half, both.size))
    }

    /** RGB bytes, row by row; Problem.CannotRun where the networks gave no numbers. */
    fun decode(latents: FloatArray): ByteArray {
        val sample = networks.decode(mix(1 / spec.latentScaling to latents))
        val size = spec.width * spec.height
        return ByteArray(3 * size) { i ->
            val value = sample[i % 3 * size + i / 3]
            if (!value.isFinite()) throw Problem.CannotRun(
                "The network gave no picture on ${networks.provider}. Choose another provider, or another bundle."
            )
            round((value / 2 + 0.5f).coerceIn(0f, 1f) * 255.0).toInt().toByte()
        }
    }
}
