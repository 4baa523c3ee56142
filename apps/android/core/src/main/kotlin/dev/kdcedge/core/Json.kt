package dev.kdcedge.core

/**
 * JSON, strictly. Numbers stay as they are spelled, because a bundle's id is a hash over the text.
 *
 * `at` names the place for messages: `manifest.json pipeline.steps`.
 */
class Json private constructor(private val value: Any?, private val at: String) {
    private class Number(val text: String)

    operator fun get(key: String): Json {
        val map = fields
        if (key !in map) throw Problem.Damaged("$at has no '$key'. Fetch the bundle again.")
        return map.getValue(key)
    }

    val fields: Map<String, Json> get() = typed<Map<String, Json>>("an object")
    val items: List<Json> get() = typed<List<Json>>("a list")
    val string: String get() = typed("a text")
    val boolean: Boolean get() = typed("true or false")
    val double: Double get() = typed<Number>("a number").text.toDouble()
    val int: Int get() = typed<Number>("a number").text.toIntOrNull() ?: wrong("a whole number")
    val long: Long get() = typed<Number>("a number").text.toLongOrNull() ?: wrong("a whole number")
    val isNull: Boolean get() = value == null

    /** The spelling that is hashed: sorted keys, no spaces. */
    fun canonical(): String = when (value) {
        is Map<*, *> -> fields.toSortedMap().entries.joinToString(",", "{", "}") { "${quote(it.key)}:${it.value.canonical()}" }
        is List<*> -> items.joinToString(",", "[", "]") { it.canonical() }
        is String -> quote(value)
        is Number -> value.text
        else -> value.toString()
    }

    private inline fun <reified T> typed(wanted: String): T = value as? T ?: wrong(wanted)

    private fun wrong(wanted: String): Nothing = throw Problem.Damaged("$at must be $wanted. Fetch the bundle again.")

    private class Parser(private val text: String, private val name: String) {
        private var i = 0

        fun document(): Json = value(name).also { skip(); if (i != text.length) fail() }

        private fun value(at: String): Json {
            skip()
            val found: Any? = when (peek()) {
                '{' -> obj(at)
                '[' -> list(at)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
            return Json(found, at)
        }

        private fun obj(at: String): Map<String, Json> {
            val map = LinkedHashMap<String, Json>()
            i++
            skip()
            while (peek() != '}') {
                skip()
                val key = string()
                skip()
                take(':')
                if (map.put(key, value(if (at == name) "$at $key" else "$at.$key")) != null) fail()
                skip()
                if (peek() != '}') take(',')
            }
            i++
            return map
        }

        private fun list(at: String): List<Json> {
            val items = ArrayList<Json>()
            i++
            skip()
            while (peek() != ']') {
                items.add(value("$at.${items.size}"))
                skip()
                if (peek() != ']') take(',')
            }
            i++
            return items
        }

        private fun string(): String {
            take('"')
            val out = StringBuilder()
            while (peek() != '"') {
                val c = text[i++]
                if (c < ' ') fail()
                out.append(if (c == '\\') escaped() else c)
            }
            i++
            return out.toString()
        }

        private fun escaped(): Char = when (val c = peek().also { i++ }) {
            '"', '\\', '/' -> c
            'n' -> '\n'
            't' -> '\t'
            'r' -> '\r'
            'b' -> '\b'
            'f' -> '\u000c'
            'u' -> (text.substring(i, minOf(i + 4, text.length)).toIntOrNull(16) ?: fail()).toChar().also { i += 4 }
            else -> fail()
        }

        private fun number(): Number {
            val found = NUMBER.matchAt(text, i) ?: fail()
            i += found.value.length
            return Number(found.value)
        }

        private fun word(word: String, means: Any?): Any? {
            if (!text.startsWith(word, i)) fail()
            i += word.length
            return means
        }

        private fun take(c: Char) {
            if (peek() != c) fail()
            i++
        }

        private fun peek(): Char = if (i < text.length) text[i] else fail()

        private fun skip() {
            while (i < text.length && text[i] in " \t\r\n") i++
        }

        private fun fail(): Nothing = throw Problem.Damaged("$name is not valid at character $i. Fetch the bundle again.")
    }

    companion object {
        private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")

        fun parse(text: String, name: String): Json = Parser(text, name).document()

        fun quote(text: String): String = buildString {
            append('"')
            for (c in text) {
                when {
                    c == '"' || c == '\\' -> append('\\').append(c)
                    c == '\n' -> append("\\n")
                    c == '\r' -> append("\\r")
                    c == '\t' -> append("\\t")
                    c == '\b' -> append("\\b")
                    c == '\u000c' -> append("\\f")
                    c < ' ' -> append("\\u%04x".format(c.code))
                    else -> append(c)
                }
            }
            append('"')
        }
    }
}
