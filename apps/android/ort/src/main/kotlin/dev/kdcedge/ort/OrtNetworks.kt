package dev.kdcedge.ort

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import dev.kdcedge.core.Bundle
import dev.kdcedge.core.Networks
import dev.kdcedge.core.Problem
import java.nio.FloatBuffer
import java.nio.LongBuffer

/**
 * The networks of an ONNX bundle. With `lowMemory` one is open at a time, and each picture opens them anew.
 *
 * Not for two threads at once.
 */
class OrtNetworks(private val bundle: Bundle, private val chosen: Provider, private val lowMemory: Boolean = false) : Networks {
    private val environment = OrtEnvironment.getEnvironment()
    private val sessions = LinkedHashMap<String, OrtSession>()
    private val spec = bundle.manifest.pipeline
    override val provider: String get() = chosen.label

    init {
        if (!lowMemory) bundle.manifest.components.keys.forEach { session(it) }
    }

    override fun encode(ids: List<IntArray>): FloatArray {
        val flat = LongBuffer.wrap(ids.flatMap { row -> row.map { it.toLong() } }.toLongArray())
        val shape = longArrayOf(ids.size.toLong(), spec.tokens.toLong())
        return run("text_encoder", "last_hidden_state", "input_ids" to OnnxTensor.createTensor(environment, flat, shape))
    }

    override fun predict(samples: FloatArray, timestep: Float, text: FloatArray): FloatArray {
        val batch = samples.size / spec.latentSize
        return run(
            "unet", "out_sample",
            "sample" to tensor(samples, batch, spec.latent),
            "timestep" to OnnxTensor.createTensor(environment, timestep),
            "encoder_hidden_states" to tensor(text, batch, listOf(spec.tokens, text.size / batch / spec.tokens)),
        )
    }

    override fun decode(latents: FloatArray): FloatArray =
        run("vae_decoder", "sample", "latent_sample" to tensor(latents, 1, spec.latent))

    override fun close() {
        sessions.values.forEach { it.close() }
        sessions.clear()
    }

    private fun run(name: String, output: String, vararg inputs: Pair<String, OnnxTensor>): FloatArray = try {
        session(name).run(mapOf(*inputs), setOf(output)).use { result ->
            val buffer = (result[output].get() as OnnxTensor).floatBuffer
            FloatArray(buffer.remaining()).also { buffer.get(it) }
        }
    } catch (error: OrtException) {
        throw cannot(name, error)
    } finally {
        inputs.forEach { it.second.close() }
    }

    private fun session(name: String): OrtSession {
        sessions[name]?.let { return it }
        if (lowMemory) close()
        val component = bundle.manifest.components[name] ?: throw Problem.Damaged("The bundle has no $name. Fetch it again.")
        return OrtSession.SessionOptions().use { options ->
            component.options.forEach { (key, value) -> options.addConfigEntry(key, value) }
            chosen.add(options)
            try {
                environment.createSession(bundle.file(component.files[0]).path, options).also { sessions[name] = it }
            } catch (error: OrtException) {
                throw cannot(name, error)
            }
        }
    }

    private fun cannot(name: String, error: OrtException): Problem {
        val why = error.message.orEmpty()
        if ("alloc" in why.lowercase()) return Problem.TooLittleMemory(
            "There is too little memory for the $name. Close other apps, or switch low memory on."
        )
        return Problem.CannotRun("The $name does not run on ${chosen.label} here ($why). Choose another provider.")
    }

    private fun tensor(data: FloatArray, batch: Int, shape: List<Int>): OnnxTensor {
        val sizes = (listOf(batch) + shape).map { it.toLong() }.toLongArray()
        return OnnxTensor.createTensor(environment, FloatBuffer.wrap(data), sizes)
    }
}
