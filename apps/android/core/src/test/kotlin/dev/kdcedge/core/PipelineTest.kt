package dev.kdcedge.core

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** Numbers of the right shape, a function of the inputs alone. */
class FakeNetworks(private val spec: PipelineSpec, private val width: Int = 256) : Networks {
    override val provider = "fake"
    var calls = 0
    var broken = false

    override fun encode(ids: List<IntArray>) =
        ids.map { row -> FloatArray(row.size * width) { (row[it / width] % 97) / 97f } }.reduce { a, b -> a + b }

    override fun predict(samples: FloatArray, timestep: Float, text: FloatArray): FloatArray {
        calls++
        return FloatArray(samples.size) { 0.5f * samples[it] + text[it % text.size] - timestep / 5000 }
    }

    override fun decode(latents: FloatArray) =
        FloatArray(3 * spec.width * spec.height) { if (broken) Float.NaN else latents[it % latents.size] }

    override fun close() = Unit
}

class PipelineTest {
    private val bundle = Bundle.open(BUNDLE, "onnx", freeMib = 4096)
    private val spec = bundle.manifest.pipeline
    private val networks = FakeNetworks(spec)
    private val pipeline = Pipeline(spec, Tokenizer(File(BUNDLE, "tokenizer"), spec.tokens), networks)

    @Test
    fun `a picture, with progress`() {
        val seen = mutableListOf<Pair<Int, Int>>()
        val picture = pipeline.generate(Request("red apple", seed = 3), progress = { done, all -> seen += done to all })
        assertEquals((0..4).map { it to 4 }, seen)
        assertEquals(3 * 64 * 64, picture.rgb.size)
        assertContentEquals(picture.rgb, pipeline.generate(Request("red apple", seed = 3)).rgb)
        assertTrue(!picture.rgb.contentEquals(pipeline.generate(Request("red apple", seed = 4)).rgb))
    }

    @Test
    fun `cancelled between two steps`() {
        val problem = assertFailsWith<Problem.Cancelled> {
            pipeline.generate(Request("red apple"), cancelled = { networks.calls == 2 })
        }
        assertEquals(2, networks.calls)
        assertEquals("Stopped; no picture was made.", problem.message)
    }

    @Test
    fun `guidance 1 is the prompt alone, 0 the negative one`() {
        fun rgb(prompt: String, guidance: Double, negative: String = "") =
            pipeline.generate(Request(prompt, guidance = guidance, negative = negative)).rgb
        assertContentEquals(rgb("rocket", 1.0), rgb("red apple", 0.0, negative = "rocket"))
        assertTrue(!rgb("rocket", 1.0).contentEquals(rgb("rocket", 3.0)))
    }

    @Test
    fun `a network without numbers`() {
        networks.broken = true
        val problem = assertFailsWith<Problem.CannotRun> { pipeline.generate(Request("red apple")) }
        assertContains(problem.message!!, "no picture on fake")
    }

    @Test
    fun `steps that cannot be`() {
        for (steps in listOf(0, -1, 5000)) assertFailsWith<Problem.CannotRun> { pipeline.generate(Request("", steps = steps)) }
    }

    @Test
    fun `the fake passes what needs no network, and nothing else`() {
        val verdicts = Conformance(bundle, pipeline).run().toList()
        val passed = verdicts.filter { it.passed }.map { it.stage }
        assertEquals(listOf("text_ids", "input_ids", "noise", "timesteps", "sigmas"), passed)
        assertEquals(9, verdicts.size)
        File(System.getProperty("kdc.results")).writeText(Conformance(bundle, pipeline).results("the tests, fake", verdicts))
    }
}
