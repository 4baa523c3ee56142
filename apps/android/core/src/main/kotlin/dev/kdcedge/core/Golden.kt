package dev.kdcedge.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** An array of one of golden/'s types: I64, F32 or U8, as doubles. */
class Stored(val dtype: String, val shape: List<Int>, val values: DoubleArray) {
    /** Row `p` of the first axis. */
    fun row(p: Int): DoubleArray = (values.size / shape[0]).let { values.copyOfRange(p * it, (p + 1) * it) }
}

/** golden/ of a bundle; docs/conformance.md says what is in it, byte for byte. */
class Golden(bundle: Bundle) {
    private val json = Json.parse(bundle.file("golden/golden.json").readText(), "golden.json")
    val prompts = json["prompts"].items.map { it.string }
    val texts = json["texts"].items.map { it.string }
    val sampler = json["sampler"].string
    val steps = json["steps"].int
    val guidance = json["guidance"].double
    val seed = json["seed"].long
    val negative = json["negative"].string
    val tolerances = json["tolerances"].fields.mapValues { it.value.double }
    val arrays = safetensors(bundle.file("golden/vectors.safetensors"))

    operator fun get(name: String): Stored =
        arrays[name] ?: throw Problem.Damaged("golden/ has no '$name'. Convert the model again.")
}

/** Every array of a safetensors file: 8 bytes of header length, JSON, data, all little-endian. */
fun safetensors(file: File): Map<String, Stored> {
    val bytes = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN)
    val length = if (bytes.capacity() < 8) -1 else bytes.getLong(0)
    if (length < 0 || length > bytes.capacity() - 8) throw Problem.Damaged("${file.name} is damaged. Fetch the bundle again.")
    val header = Json.parse(String(bytes.array(), 8, length.toInt()), file.name)
    return header.fields.filterKeys { it != "__metadata__" }.mapValues { (_, entry) ->
        val shape = entry["shape"].items.map { it.int }
        val at = 8 + length.toInt() + entry["data_offsets"].items[0].int
        val count = shape.fold(1, Int::times)
        val dtype = entry["dtype"].string
        val size = mapOf("I64" to 8, "F32" to 4, "U8" to 1)[dtype]
            ?: throw Problem.Damaged("${file.name} holds $dtype. Update the app.")
        if (at < 0 || at + count * size > bytes.capacity()) {
            throw Problem.Damaged("${file.name} is damaged. Fetch the bundle again.")
        }
        Stored(dtype, shape, DoubleArray(count) { i ->
            when (dtype) {
                "I64" -> bytes.getLong(at + 8 * i).toDouble()
                "F32" -> bytes.getFloat(at + 4 * i).toDouble()
                else -> (bytes.get(at + i).toInt() and 255).toDouble()
            }
        })
    }
}
