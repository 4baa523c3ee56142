package dev.kdcedge.core

import java.io.File
import java.io.IOException
import java.net.HttpURLConnection
import java.net.URI
import java.net.URL

/** Fetches a bundle, file by file, each held against the manifest before it counts; goes on where it stopped. */
class Download(private val base: URL, private val folder: File) {
    /** `progress` is 0 to 1. Throws Problem.NotFetched, Damaged or Cancelled; what is whole stays for the next try. */
    fun run(cancelled: () -> Boolean = { false }, progress: (Double) -> Unit = {}): File {
        val text = String(fetch("manifest.json", cancelled) { })
        val manifest = Manifest.parse(text)
        val total = maxOf(1L, manifest.files.values.sumOf { it.bytes })
        var done = 0L
        for ((name, entry) in manifest.files) {
            if (!Bundle.isSafe(name)) throw Problem.Damaged("The manifest lists '$name', which is outside the bundle.")
            val file = File(folder, name)
            if (!file.isFile || file.length() != entry.bytes || sha256(file) != entry.sha256) {
                get(name, entry, file, cancelled) { progress((done + it).toDouble() / total) }
            }
            done += entry.bytes
            progress(done.toDouble() / total)
        }
        File(folder, "manifest.json").writeText(text)
        return folder
    }

    private fun get(name: String, entry: FileEntry, file: File, cancelled: () -> Boolean, read: (Long) -> Unit) {
        val part = File(file.path + ".part").apply { parentFile?.mkdirs() }
        try {
            part.outputStream().use { out -> stream(name, cancelled, read) { buffer, n -> out.write(buffer, 0, n) } }
            if (part.length() != entry.bytes || sha256(part) != entry.sha256) {
                throw Problem.Damaged("$name came damaged: its SHA-256 is not the manifest's. Try again, or another source.")
            }
            file.delete()
            if (!part.renameTo(file)) throw Problem.NotFetched("$name cannot be stored. Is there room on the device?")
        } finally {
            part.delete()
        }
    }

    private fun fetch(name: String, cancelled: () -> Boolean, read: (Long) -> Unit): ByteArray {
        val out = java.io.ByteArrayOutputStream()
        stream(name, cancelled, read) { buffer, n -> out.write(buffer, 0, n) }
        return out.toByteArray()
    }

    private fun stream(name: String, cancelled: () -> Boolean, read: (Long) -> Unit, write: (ByteArray, Int) -> Unit) {
        try {
            val connection = URL(base, URI(null, null, name, null).rawPath).openConnection() as HttpURLConnection
            connection.connectTimeout = TIMEOUT
            connection.readTimeout = TIMEOUT
            if (connection.responseCode != 200) throw IOException("the server says ${connection.responseCode}")
            connection.inputStream.use { input ->
                val buffer = ByteArray(1 shl 16)
                var done = 0L
                while (true) {
                    if (cancelled()) throw Problem.Cancelled()
                    val n = input.read(buffer)
                    if (n < 0) break
                    write(buffer, n)
                    done += n
                    read(done)
                }
            }
        } catch (error: IOException) {
            throw Problem.NotFetched("$name could not be fetched (${error.message}). Check the connection and try again.")
        }
    }

    private companion object {
        const val TIMEOUT = 20_000 // ms
    }
}
