package dev.kdcedge.core

import kotlin.math.hypot
import kotlin.math.ln
import kotlin.math.pow
import kotlin.math.round
import kotlin.math.sqrt

// x = x0 + sigma · noise, as C·H·W numbers; n evaluations of the network

typealias Denoise = (FloatArray, Double) -> FloatArray

/** Sigmas of the training steps, rising; timesteps count from 0, the cleanest. */
class Schedule(val betas: Betas) {
    private val sigmas = DoubleArray(betas.trainSteps)

    init {
        val power = if (betas.schedule == "scaled_linear") 2 else 1
        val first = betas.start.pow(1.0 / power)
        val last = betas.end.pow(1.0 / power)
        var kept = 1.0
        for (i in sigmas.indices) {
            kept *= 1 - (first + (last - first) * i / (sigmas.size - 1)).pow(power)
            sigmas[i] = sqrt((1 - kept) / kept)
        }
    }

    val final: Double get() = if (betas.setAlphaToOne) 0.0 else sigmas[0]

    /** Linear between two training steps. */
    fun sigma(timestep: Double): Double {
        val low = timestep.toInt().coerceIn(0, sigmas.size - 2)
        return sigmas[low] + (sigmas[low + 1] - sigmas[low]) * (timestep - low).coerceIn(0.0, 1.0)
    }

    /** The inverse: what the network is told. */
    fun timestep(sigma: Double): Double {
        val found = sigmas.binarySearch(sigma)
        val low = (if (found >= 0) found else -found - 2).coerceIn(0, sigmas.size - 2)
        return low + ((sigma - sigmas[low]) / (sigmas[low + 1] - sigmas[low])).coerceIn(0.0, 1.0)
    }

    fun timesteps(steps: Int): DoubleArray {
        val count = betas.trainSteps
        return DoubleArray(steps) { i ->
            when (betas.spacing) {
                "linspace" -> (steps - 1 - i) * ((count - 1.0) / maxOf(steps - 1, 1))
                "trailing" -> round(count - i * (count.toDouble() / steps)) - 1
                else -> (steps - 1.0 - i) * (count / steps) + betas.stepsOffset
            }
        }
    }
}

/** Evaluation i is at sigmas[i], its step starts at sources[i] and lands on targets[i]; x begins as noise · start. */
class Plan(
    val timesteps: DoubleArray,
    val sigmas: DoubleArray,
    val sources: DoubleArray,
    val targets: DoubleArray,
    val start: Double,
)

/** After step `index` of `total`: x at noise level `sigma`. */
class Step(val index: Int, val total: Int, val sigma: Double, val x: FloatArray) {
    /** In unit variance: what the decoder takes after the last step. */
    val latents: FloatArray get() = mix(1 / hypot(1.0, sigma) to x)
}

object Samplers {
    val names = listOf("euler", "ddim", "dpmpp_2m", "pndm", "lcm")

    fun plan(sampler: String, schedule: Schedule, steps: Int): Plan {
        if (steps !in 1..(if (sampler == "lcm") 50 else schedule.betas.trainSteps - 1)) {
            throw Problem.CannotRun("$steps steps are not possible. Choose fewer, or at least one.")
        }
        val stride = schedule.betas.trainSteps / steps
        val spacing = schedule.betas.spacing
        var spaced = when (sampler) {
            "lcm" -> DoubleArray(steps) { (50.0 - it * 50 / steps) * (schedule.betas.trainSteps / 50) - 1 }
            "dpmpp_2m" -> schedule.timesteps(if (spacing == "trailing") steps else steps + 1).copyOf(steps)
            else -> schedule.timesteps(steps)
        }
        if (sampler != "euler") spaced = DoubleArray(spaced.size) { round(spaced[it]) }
        if (sampler == "pndm" && steps > 1) spaced = doubleArrayOf(spaced[0], spaced[1], *spaced.copyOfRange(1, steps))
        val sigmas = DoubleArray(spaced.size) { schedule.sigma(spaced[it]) }
        val sources = sigmas.copyOf()
        var targets = DoubleArray(spaced.size) { if (it + 1 < sigmas.size) sigmas[it + 1] else 0.0 }
        if (sampler == "ddim" || sampler == "pndm") targets = DoubleArray(spaced.size) {
            if (spaced[it] >= stride) schedule.sigma(spaced[it] - stride) else schedule.final
        }
        if (sampler == "pndm" && steps > 1) {
            sources[1] = schedule.sigma(spaced[1] + stride)
            targets[1] = sigmas[1]
        }
        val plain = sampler == "euler" && spacing != "leading"
        return Plan(spaced, sigmas, sources, targets, if (plain) sigmas[0] else hypot(1.0, sigmas[0]))
    }

    /** The steps, one at a time, as the caller asks for them: leaving early is how a picture is cancelled. */
    fun sample(sampler: String, denoise: Denoise, x: FloatArray, plan: Plan, noise: Noise): Sequence<Step> {
        val xs = when (sampler) {
            "euler", "ddim" -> euler(denoise, x, plan)
            "dpmpp_2m" -> dpmpp2m(denoise, x, plan)
            "pndm" -> pndm(denoise, x, plan)
            "lcm" -> lcm(denoise, x, plan, noise)
            else -> throw Problem.Damaged("This app has no sampler '$sampler'. Update the app.")
        }
        return xs.mapIndexed { i, after -> Step(i, plan.sigmas.size, plan.targets[i], after) }
    }

    private fun euler(denoise: Denoise, start: FloatArray, plan: Plan) = sequence {
        var x = start
        var level = plan.sigmas[0]
        for ((i, sigma) in plan.sigmas.withIndex()) {
            x = moved(x, level, sigma)
            val step = (plan.targets[i] - sigma) / sigma
            x = mix(1 + step to x, -step to denoise(x, sigma))
            level = plan.targets[i]
            yield(x)
        }
    }

    private fun dpmpp2m(denoise: Denoise, start: FloatArray, plan: Plan) = sequence {
        var x = start
        var previous: FloatArray? = null
        var hPrevious = 0.0
        for ((i, sigma) in plan.sigmas.withIndex()) {
            val target = plan.targets[i]
            val x0 = denoise(x, sigma)
            var ahead = x0
            if (target > 0) {
                val h = ln(sigma / target)
                previous?.let { ahead = mix(1 + 0.5 * h / hPrevious to x0, -0.5 * h / hPrevious to it) }
                previous = x0
                hPrevious = h
            }
            x = mix(target / sigma to x, 1 - target / sigma to ahead)
            yield(x)
        }
    }

    private fun pndm(denoise: Denoise, start: FloatArray, plan: Plan) = sequence {
        val slopes = ArrayDeque<FloatArray>() // newest first
        var x = start
        var level = plan.sigmas[0]
        for ((i, sigma) in plan.sigmas.withIndex()) {
            x = moved(x, level, sigma)
            var slope = mix(1 / sigma to x, -1 / sigma to denoise(x, sigma))
            if (i == 1) {
                slope = mix(0.5 to slope, 0.5 to slopes[0])
                x = moved(start, plan.sigmas[0], plan.sources[1])
            } else {
                slopes.addFirst(slope)
                if (slopes.size > 4) slopes.removeLast()
                slope = mix(*ADAMS_BASHFORTH[slopes.size - 1].zip(slopes).toTypedArray())
            }
            x = mix(1.0 to x, plan.targets[i] - plan.sources[i] to slope)
            level = plan.targets[i]
            yield(x)
        }
    }

    private fun lcm(denoise: Denoise, start: FloatArray, plan: Plan, noise: Noise) = sequence {
        var x = start
        for ((i, sigma) in plan.sigmas.withIndex()) {
            val scaled = plan.timesteps[i] * 10
            val skip = 0.25 / (scaled * scaled + 0.25)
            x = mix(scaled / hypot(scaled, 0.5) to denoise(x, sigma), skip / hypot(1.0, sigma) to x)
            if (plan.targets[i] > 0) x = mix(1.0 to x, plan.targets[i] to noise(x.size))
            yield(x)
        }
    }

    private val ADAMS_BASHFORTH = listOf(
        listOf(1.0), listOf(3 / 2.0, -1 / 2.0), listOf(23 / 12.0, -16 / 12.0, 5 / 12.0),
        listOf(55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0),
    )

    private fun moved(x: FloatArray, level: Double, sigma: Double) = mix(hypot(1.0, sigma) / hypot(1.0, level) to x)
}

/** The denoiser of a network that sees unit variance and predicts epsilon, v or x0. */
fun denoiser(network: Denoise, predicts: String, schedule: Schedule): Denoise = { x, sigma ->
    val size = hypot(1.0, sigma)
    val out = network(mix(1 / size to x), schedule.timestep(sigma))
    when (predicts) {
        "epsilon" -> mix(1.0 to x, -sigma to out)
        "v_prediction" -> mix(1 / (size * size) to x, -sigma / size to out)
        else -> out
    }
}

/** The sum of number · vector, in double precision. */
fun mix(vararg terms: Pair<Double, FloatArray>) = FloatArray(terms[0].second.size) { i ->
    var sum = 0.0
    for ((number, vector) in terms) sum += number * vector[i]
    sum.toFloat()
}
