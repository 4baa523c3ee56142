package dev.kdcedge.core

import java.io.File
import java.text.Normalizer
import java.util.Locale

/** `ids` (tokens), and how many tokens of the text did not fit. */
class Encoded(val ids: IntArray, val dropped: Int) {
    /** For the person who typed; null if all of it fits. */
    val notice: String?
        get() = if (dropped == 0) null else "The prompt is $dropped tokens too long; its end was left out."
}

/** CLIP's byte-pair encoding over `vocab.json` and `merges.txt`: apps/reference.py, line by line. */
class Tokenizer(folder: File, private val tokens: Int) {
    private val vocab = Json.parse(File(folder, "vocab.json").readText(), "vocab.json").fields.mapValues { it.value.int }
    private val ranks = HashMap<Pair<String, String>, Int>()
    private val start = id(START)
    private val end = id(END)

    init {
        for (line in File(folder, "merges.txt").readText().split("\n")) {
            if (line.isEmpty() || line.startsWith("#version")) continue
            val (first, second) = line.split(" ").also { if (it.size != 2) damaged("merges.txt") }
            ranks[first to second] = ranks.size
        }
    }

    operator fun invoke(text: String): Encoded {
        val ids = encode(text)
        val kept = IntArray(tokens) { end }
        kept[0] = start
        for (i in 0 until minOf(ids.size, tokens - 2)) kept[i + 1] = ids[i]
        return Encoded(kept, maxOf(0, ids.size - tokens + 2))
    }

    private fun encode(text: String): List<Int> {
        val ids = ArrayList<Int>()
        var rest = text
        while (rest.isNotEmpty()) {
            val (where, name) = rest.findAnyOf(listOf(START, END)) ?: (rest.length to "")
            for (word in words(rest.substring(0, where))) merge(word).mapTo(ids) { vocab[it] ?: end }
            if (name.isNotEmpty()) ids.add(id(name))
            rest = rest.substring(where + name.length)
        }
        return ids
    }

    private fun merge(word: String): List<String> {
        val pieces = word.toByteArray().mapTo(ArrayList()) { LETTERS[it.toInt() and 255] }
        pieces[pieces.size - 1] += "</w>"
        while (pieces.size > 1) {
            val best = (0 until pieces.size - 1).minByOrNull { ranks[pieces[it] to pieces[it + 1]] ?: Int.MAX_VALUE }!!
            if (pieces[best] to pieces[best + 1] !in ranks) break
            pieces[best] += pieces.removeAt(best + 1)
        }
        return pieces
    }

    private fun id(name: String) = vocab[name] ?: damaged("vocab.json")

    private fun damaged(file: String): Nothing = throw Problem.Damaged("tokenizer/$file is damaged. Fetch the bundle again.")

    private enum class Kind { SPACE, LETTER, NUMBER, OTHER }

    companion object {
        const val START = "<|startoftext|>"
        const val END = "<|endoftext|>"
        private val CONTRACTIONS = listOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
        private val SPACES = setOf(0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000) + (9..13) + (0x2000..0x200A)
        private val PRINTABLE = (33..126) + (161..172) + (174..255)
        private val LETTERS: List<String> = run {
            var next = 256
            (0..255).map { byte -> (if (byte in PRINTABLE) byte else next++).toChar().toString() }
        }

        /** NFC; lower case of each character by itself; contractions, runs of letters, single digits, runs of the rest. */
        private fun words(text: String): List<String> {
            val points = Normalizer.normalize(text, Normalizer.Form.NFC).codePoints().toArray()
                .joinToString("") { String(Character.toChars(it)).lowercase(Locale.ROOT) }.codePoints().toArray()
            val found = ArrayList<String>()
            var i = 0
            while (i < points.size) {
                val special = listOf(START, END).firstOrNull { points.startsWith(it, i) }
                val short = CONTRACTIONS.firstOrNull { points.startsWith(it, i) }
                var end = i + (special ?: short ?: " ").length
                val kind = kind(points[i])
                if (special != null) {
                    found += listOf(special.take(2), special.drop(2).dropLast(2), special.takeLast(2))
                } else if (kind != Kind.SPACE) {
                    if (short == null && kind != Kind.NUMBER) while (end < points.size && kind(points[end]) == kind) end++
                    found += String(points, i, end - i)
                }
                i = end
            }
            return found
        }

        private fun IntArray.startsWith(prefix: String, at: Int) =
            at + prefix.length <= size && prefix.indices.all { this[at + it] == prefix[it].code }

        private fun kind(point: Int): Kind = when {
            point in SPACES -> Kind.SPACE
            Character.isLetter(point) -> Kind.LETTER
            Character.getType(point).toByte() in NUMBERS -> Kind.NUMBER
            else -> Kind.OTHER
        }

        private val NUMBERS = listOf(Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER)
    }
}
