package dev.kdcedge.core

import java.io.File
import kotlin.math.abs
import kotlin.math.sin
import kotlin.math.tanh
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertTrue

/** Gradle and `tests/apps/test_kotlin.py` name the emoji-64 bundle and apps/vectors.json. */
val BUNDLE = File(System.getProperty("kdc.bundle"))
val VECTORS = Json.parse(File(System.getProperty("kdc.vectors")).readText(), "vectors.json")

/** Of the largest value: x is stored as float32 from step to step. */
const val TOLERANCE = 4e-6

class VectorsTest {
    @Test
    fun tokenizer() {
        val tokenizer = Tokenizer(File(BUNDLE, "tokenizer"), 77)
        for (case in VECTORS["tokenizer"].items) {
            val encoded = tokenizer(case["text"].string)
            assertEquals(case["ids"].items.map { it.int }, encoded.ids.toList(), case["text"].string)
            assertEquals(case["dropped"].int, encoded.dropped)
        }
    }

    @Test
    fun noise() {
        for (case in VECTORS["noise"].items) {
            val noise = Noise(case["seed"].long)
            assertContentEquals(floats(case["first"]), noise(7))
            assertContentEquals(floats(case["second"]), noise(1300).copyOfRange(1297, 1300))
        }
    }

    @Test
    fun samplers() {
        assertEquals(Samplers.names.toSet(), VECTORS["samplers"].items.map { it["sampler"].string }.toSet())
        for (case in VECTORS["samplers"].items) {
            val schedule = Schedule(Betas(case["betas"]))
            val plan = Samplers.plan(case["sampler"].string, schedule, case["steps"].int)
            assertEquals(case["timesteps"].items.map { it.double }, plan.timesteps.toList())
            val start = mix(plan.start to Noise(3)(12))
            val denoise = denoiser(::network, case["prediction_type"].string, schedule)
            val steps = Samplers.sample(case["sampler"].string, denoise, start, plan, Noise(5)).toList()
            assertEquals(case["x"].items.size, steps.size)
            for ((step, wanted) in steps.zip(case["x"].items.map { floats(it) })) {
                val off = wanted.indices.maxOf { abs(wanted[it] - step.x[it]) }
                val allowed = TOLERANCE * wanted.maxOf { abs(it) }
                assertTrue(off <= allowed, "${case["sampler"].string}, step ${step.index}: off by $off")
            }
        }
    }

    private fun network(x: FloatArray, timestep: Double) = FloatArray(x.size) {
        tanh(0.7 * x[it] + 0.3 * (-1 + 2.0 * it / (x.size - 1)) + sin(timestep / 150)).toFloat()
    }

    private fun floats(json: Json) = json.items.map { it.double.toFloat() }.toFloatArray()
}
