package dev.kdcedge.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import kotlin.math.abs

/** One stage, measured and judged; `difference` is the largest absolute one. */
class Verdict(val stage: String, val measured: Stored, val difference: Double, val tolerance: Double) {
    val passed: Boolean get() = difference <= tolerance // NaN fails
}

/** The golden vectors on this device, each stage from golden inputs; docs/conformance.md says what is asked. */
class Conformance(private val bundle: Bundle, private val pipeline: Pipeline) {
    private val golden = Golden(bundle)
    private val spec = pipeline.spec.copy(sampler = golden.sampler)
    private val told = Pipeline(spec, pipeline.tokenizer, pipeline.networks)
    private val plan = Samplers.plan(golden.sampler, told.schedule, golden.steps)
    private val count = golden.prompts.size

    private val stages: Map<String, () -> Stored> = linkedMapOf(
        "text_ids" to { ids(golden["text_ids"].shape, golden.texts.map { told.tokenizer(it).ids }) },
        "input_ids" to {
            val texts = golden.prompts.flatMap { told.texts(it, golden.negative, golden.guidance) }
            ids(golden["input_ids"].shape, texts.map { told.tokenizer(it).ids })
        },
        "noise" to { floats(golden["noise"].shape, (0 until count).map { Noise(golden.seed + it)(spec.latentSize) }) },
        "timesteps" to { floats(plan.sigmas.map { told.schedule.timestep(it) }) },
        "sigmas" to { floats(plan.targets.toList()) },
        "last_hidden_state" to { floats(golden["last_hidden_state"].shape, (0 until count).map { hidden(it).last() }) },
        "latents" to { floats(golden["latents"].shape, (0 until count).flatMap { latents(it) }) },
        "images" to { bytes((0 until count).map { told.decode(lastLatents(it)) }) },
        "pictures" to {
            bytes(golden.prompts.mapIndexed { p, prompt ->
                told.generate(Request(prompt, golden.seed + p, golden.steps, golden.guidance, golden.negative)).rgb
            })
        },
    )

    /** Stage by stage, as the caller asks for them. */
    fun run(): Sequence<Verdict> = stages.asSequence().map { (name, measure) -> judge(name, measure()) }

    /** What `kdc-edge conformance <bundle> --results` reads. */
    fun results(app: String, verdicts: List<Verdict>): String {
        val stages = verdicts.joinToString(",\n") { (it.measured.run { "    ${Json.quote(it.stage)}: ${json(this)}" }) }
        return "{\n  \"format\": 1,\n  \"bundle\": \"${bundle.manifest.id}\",\n  \"app\": ${Json.quote(app)},\n" +
            "  \"stages\": {\n$stages\n  }\n}\n"
    }

    private fun judge(name: String, measured: Stored): Verdict {
        val array = if (name == "pictures") "images" else name
        val wanted = golden[array]
        val tolerance = when (array) {
            "text_ids", "input_ids", "noise" -> 0.0
            "timesteps", "sigmas" -> 1e-6 * wanted.values.maxOf { abs(it) }
            else -> golden.tolerances[array] ?: throw Problem.Damaged("golden.json has no tolerance for $array.")
        }
        val same = measured.shape == wanted.shape
        val difference = if (same) wanted.values.indices.maxOf { abs(measured.values[it] - wanted.values[it]) } else Double.NaN
        return Verdict(name, measured, difference, tolerance)
    }

    /** B rows of T·D. */
    private fun hidden(p: Int): List<FloatArray> {
        val tokens = spec.tokens
        val ids = golden["input_ids"].row(p).map { it.toInt() }.chunked(tokens).map { it.toIntArray() }
        val all = told.networks.encode(ids)
        return (0 until ids.size).map { all.copyOfRange(it * all.size / ids.size, (it + 1) * all.size / ids.size) }
    }

    private fun latents(p: Int): List<FloatArray> {
        val text = hidden(p).dropLast(1) + golden["last_hidden_state"].row(p).toFloats()
        val denoise = told.denoiser(text.reduce { a, b -> a + b }, golden.guidance)
        val noise = Noise(golden.seed + p).also { it(spec.latentSize) }
        val start = mix(plan.start to golden["noise"].row(p).toFloats())
        return Samplers.sample(golden.sampler, denoise, start, plan, noise).map { it.latents }.toList()
    }

    private fun lastLatents(p: Int): FloatArray =
        golden["latents"].row(p).toFloats().let { it.copyOfRange(it.size - spec.latentSize, it.size) }

    private fun bytes(pictures: List<ByteArray>) = Stored(
        "U8", listOf(pictures.size, spec.height, spec.width, 3),
        pictures.flatMap { it.map { byte -> (byte.toInt() and 255).toDouble() } }.toDoubleArray(),
    )
}

private fun DoubleArray.toFloats() = FloatArray(size) { this[it].toFloat() }

private fun ids(shape: List<Int>, rows: List<IntArray>) =
    Stored("I64", shape, rows.flatMap { row -> row.map { it.toDouble() } }.toDoubleArray())

private fun floats(shape: List<Int>, rows: List<FloatArray>) =
    Stored("F32", shape, rows.flatMap { row -> row.map { it.toDouble() } }.toDoubleArray())

private fun floats(numbers: List<Double>) =
    Stored("F32", listOf(numbers.size), numbers.map { it.toFloat().toDouble() }.toDoubleArray())

/** dtype, shape and little-endian bytes in base64. */
private fun json(array: Stored): String {
    val dtype = mapOf("I64" to "int64", "F32" to "float32", "U8" to "uint8").getValue(array.dtype)
    val bytes = ByteBuffer.allocate(8 * array.values.size).order(ByteOrder.LITTLE_ENDIAN)
    for (value in array.values) when (array.dtype) {
        "I64" -> bytes.putLong(value.toLong())
        "F32" -> bytes.putFloat(value.toFloat())
        else -> bytes.put(value.toInt().toByte())
    }
    val data = Base64.getEncoder().encodeToString(bytes.array().copyOf(bytes.position()))
    return "{\"dtype\": \"$dtype\", \"shape\": ${array.shape}, \"data\": \"$data\"}"
}
