package dev.kdcedge.ort

import dev.kdcedge.core.Bundle
import dev.kdcedge.core.Conformance
import dev.kdcedge.core.Pipeline
import dev.kdcedge.core.Problem
import dev.kdcedge.core.Request
import dev.kdcedge.core.Tokenizer
import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith

/** The whole Android line but its screen, on this machine: the emoji-64 bundle through onnxruntime's Java library. */
class OrtTest {
    private val folder = File(System.getProperty("kdc.bundle"))
    private val bundle = Bundle.open(folder, "onnx", freeMib = 4096)

    private fun <T> drawing(lowMemory: Boolean = false, use: (Pipeline) -> T): T {
        val spec = bundle.manifest.pipeline
        val tokenizer = Tokenizer(File(folder, "tokenizer"), spec.tokens)
        return OrtNetworks(bundle, Provider.CPU, lowMemory).use { use(Pipeline(spec, tokenizer, it)) }
    }

    @Test
    fun `every stage conforms`() = drawing { pipeline ->
        val conformance = Conformance(bundle, pipeline)
        val verdicts = conformance.run().toList()
        File(System.getProperty("kdc.results")).writeText(conformance.results("the tests, onnxruntime on the JVM", verdicts))
        assertEquals(emptyList(), verdicts.filter { !it.passed }.map { "${it.stage}: ${it.difference} of ${it.tolerance}" })
    }

    @Test
    fun `low memory draws the same picture`() {
        val request = Request("red apple", seed = 3)
        assertContentEquals(drawing { it.generate(request).rgb }, drawing(lowMemory = true) { it.generate(request).rgb })
    }

    @Test
    fun `a provider that is not here`() {
        assertEquals(Provider.CPU, Provider.here().last())
        val absent = Provider.entries.first { !it.isHere() }
        val problem = assertFailsWith<Problem.CannotRun> { OrtNetworks(bundle, absent) }
        assertContains(problem.message!!, "Choose another provider")
    }
}
