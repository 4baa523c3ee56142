package dev.kdcedge.core

import com.sun.net.httpserver.HttpServer
import java.io.File
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.URL
import kotlin.io.path.createTempDirectory
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNotNull
import kotlin.test.assertNull

class BundleTest {
    private val folder = createTempDirectory("kdc").toFile()
    private val copy by lazy { File(folder, "bundle").also { BUNDLE.copyRecursively(it) } }

    @AfterTest
    fun clean() = assertEquals(true, folder.deleteRecursively())

    @Test
    fun `the id is the one that kdc-edge inspect shows`() {
        val bundle = opened(BUNDLE)
        assertEquals(System.getProperty("kdc.id"), bundle.manifest.id)
        assertEquals(listOf(64, 64), listOf(bundle.manifest.pipeline.height, bundle.manifest.pipeline.width))
    }

    @Test
    fun `a bundle for another runtime`() {
        val problem = assertFailsWith<Problem.OtherRuntime> { Bundle.open(BUNDLE, "coreml", freeMib = 4096) }
        assertContains(problem.message!!, "made for onnx; this app runs bundles for coreml")
    }

    @Test
    fun `too little memory`() {
        val problem = assertFailsWith<Problem.TooLittleMemory> { Bundle.open(BUNDLE, "onnx", freeMib = 64) }
        assertContains(problem.message!!, "64 MiB are free. Close other apps")
    }

    @Test
    fun `a damaged, a short and a missing file`() {
        val file = File(copy, "unet/model.onnx")
        val bytes = file.readBytes()
        file.writeBytes(bytes.also { damage(it) })
        assertContains(assertFailsWith<Problem.Damaged> { opened(copy) }.message!!, "unet/model.onnx is damaged")
        file.writeBytes(bytes.copyOf(1000))
        assertContains(assertFailsWith<Problem.Damaged> { opened(copy) }.message!!, "has 1000 bytes and should have")
        file.delete()
        assertContains(assertFailsWith<Problem.Damaged> { opened(copy) }.message!!, "unet/model.onnx is missing")
    }

    @Test
    fun `manifests that cannot be meant`() {
        val file = File(copy, "manifest.json")
        val text = file.readText()
        val broken = mapOf(
            text.take(500) to "not valid at character 500",
            text.replace("\"format\": 1", "\"format\": 2") to "newer than the app",
            text.replace("\"steps\": 4", "\"steps\": \"4\"") to "pipeline.steps must be a number",
            text.replace("\"tokens\": 77,", "") to "has no 'tokens'",
            text.replace("golden/golden.json", "../golden.json") to "outside the bundle",
            text.replace("\"unet/model.onnx\": {", "\"unet/other.onnx\": {") to "vouches for no unet/model.onnx",
        )
        for ((changed, message) in broken) {
            file.writeText(changed)
            assertContains(assertFailsWith<Problem.Damaged> { opened(copy) }.message!!, message)
        }
        file.delete()
        assertContains(assertFailsWith<Problem.Damaged> { opened(copy) }.message!!, "no manifest.json")
    }

    @Test
    fun `a long prompt is cut and the person told`() {
        val tokenizer = Tokenizer(File(BUNDLE, "tokenizer"), 77)
        assertNull(tokenizer("red apple").notice)
        assertEquals("The prompt is 165 tokens too long; its end was left out.", tokenizer("very long ".repeat(60)).notice)
    }

    @Test
    fun `a bundle is downloaded, a second time only what is not whole`() = served(BUNDLE) { url, asked ->
        val target = File(folder, "fetched")
        var last = 0.0
        Download(url, target).run { last = it }
        assertEquals(1.0, last)
        assertEquals(opened(BUNDLE).manifest.id, opened(target).manifest.id)
        File(target, "unet/model.onnx").appendText("x")
        asked.clear()
        Download(url, target).run()
        assertEquals(listOf("/manifest.json", "/unet/model.onnx"), asked)
        opened(target)
    }

    @Test
    fun `what arrives damaged does not stay`() {
        File(copy, "unet/model.onnx").run { writeBytes(readBytes().also { damage(it) }) }
        served(copy) { url, _ ->
            val problem = assertFailsWith<Problem.Damaged> { Download(url, File(folder, "fetched")).run() }
            assertContains(problem.message!!, "unet/model.onnx came damaged")
            assertFalse(File(folder, "fetched/unet/model.onnx").exists())
            assertFalse(File(folder, "fetched/manifest.json").exists())
        }
    }

    @Test
    fun `no server, no file, and a person who stops`() = served(folder) { url, _ ->
        val problem = assertFailsWith<Problem.NotFetched> { Download(url, File(folder, "fetched")).run() }
        assertContains(problem.message!!, "the server says 404")
        val nobody = URL("http://127.0.0.1:9/")
        assertFailsWith<Problem.NotFetched> { Download(nobody, File(folder, "fetched")).run() }
        copy.copyRecursively(File(folder, "served"))
        assertFailsWith<Problem.Cancelled> { Download(URL(url, "served/"), File(folder, "fetched")).run({ true }) }
    }

    private fun damage(bytes: ByteArray) = bytes.set(100_000, (bytes[100_000] + 1).toByte())

    private fun opened(folder: File) = assertNotNull(Bundle.open(folder, "onnx", freeMib = 4096))

    private fun served(files: File, test: (URL, MutableList<String>) -> Unit) {
        val asked = mutableListOf<String>()
        val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/") { exchange ->
            asked += exchange.requestURI.path
            val file = File(files, exchange.requestURI.path)
            exchange.sendResponseHeaders(if (file.isFile) 200 else 404, if (file.isFile) file.length() else -1)
            if (file.isFile) exchange.responseBody.use { out -> file.inputStream().use { it.copyTo(out) } }
            exchange.close()
        }
        server.start()
        try {
            test(URL("http://127.0.0.1:${server.address.port}/"), asked)
        } finally {
            server.stop(0)
        }
    }
}
