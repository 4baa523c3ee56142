package dev.kdcedge.app

import android.app.ActivityManager
import android.app.Application
import android.content.Context
import android.graphics.Bitmap
import android.os.Build
import android.os.Handler
import android.os.Looper
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableFloatStateOf
import androidx.compose.runtime.mutableStateListOf
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.setValue
import androidx.lifecycle.AndroidViewModel
import dev.kdcedge.core.Bundle
import dev.kdcedge.core.Conformance
import dev.kdcedge.core.Download
import dev.kdcedge.core.Picture
import dev.kdcedge.core.Pipeline
import dev.kdcedge.core.Problem
import dev.kdcedge.core.Request
import dev.kdcedge.core.Tokenizer
import dev.kdcedge.core.Verdict
import dev.kdcedge.ort.OrtNetworks
import dev.kdcedge.ort.Provider
import java.io.File
import java.net.MalformedURLException
import java.net.URL
import java.util.concurrent.Executors

/** What the screens show, and the one place that does the work: one thing at a time, off the main thread. */
class Studio(application: Application) : AndroidViewModel(application) {
    val providers = Provider.here()
    var provider by mutableStateOf(Provider.CPU)
    var lowMemory by mutableStateOf(false)
    var status by mutableStateOf("Fetch a bundle, or build one into the app.")
        private set
    var problem by mutableStateOf<String?>(null)
        private set
    var progress by mutableFloatStateOf(0f)
        private set
    var busy by mutableStateOf(false)
        private set
    var picture by mutableStateOf<Bitmap?>(null)
        private set
    var bundle by mutableStateOf<Bundle?>(null)
        private set
    val verdicts = mutableStateListOf<Verdict>()

    private val folder = File(application.filesDir, "bundle")
    private val worker = Executors.newSingleThreadExecutor()
    private val main = Handler(Looper.getMainLooper())
    private var networks: OrtNetworks? = null // of the worker alone
    private var loadedFor: Triple<Bundle, Provider, Boolean>? = null

    @Volatile
    private var stopped = false

    init {
        work("Checking the bundle…") {
            if (!File(folder, "manifest.json").isFile) Assets.copyBundle(application.assets, folder)
            if (File(folder, "manifest.json").isFile) openBundle()
        }
    }

    fun draw(request: Request) = work("Drawing…") {
        val pipeline = pipeline()
        val made = pipeline.generate(request, { stopped }) { done, all -> show { progress = done.toFloat() / all } }
        show {
            picture = made.toBitmap()
            status = made.notice ?: "Drawn on: ${pipeline.networks.provider}"
        }
    }

    fun conform() = work("Running the golden vectors…") {
        show { verdicts.clear() }
        val pipeline = pipeline()
        val conformance = Conformance(checkNotNull(bundle), pipeline)
        val found = conformance.run().map { verdict -> verdict.also { show { verdicts += it } } }.toList()
        val about = "kdc-edge for Android on ${Build.MODEL}, ${pipeline.networks.provider}"
        results.writeText(conformance.results(about, found))
        show { status = if (found.all { it.passed }) "Conforms on: ${pipeline.networks.provider}" else "Does not conform." }
    }

    fun fetch(address: String) = work("Fetching…") {
        val url = try {
            URL(address.trimEnd('/') + "/")
        } catch (error: MalformedURLException) {
            throw Problem.NotFetched("'$address' is no address. It begins with https:// and ends in the bundle's folder.")
        }
        release()
        show { bundle = null } // its files are about to change
        Download(url, folder).run({ stopped }) { show { progress = it.toFloat() } }
        openBundle()
    }

    fun stop() {
        stopped = true
    }

    /** For `adb pull`, and to share. */
    val results get() = File(getApplication<Application>().getExternalFilesDir(null), "results.json")

    override fun onCleared() {
        stopped = true
        worker.execute { release() }
        worker.shutdown()
    }

    private fun openBundle() {
        val opened = Bundle.open(folder, "onnx", freeMib()) { show { progress = it.toFloat() } }
        show {
            bundle = opened
            status = "${opened.manifest.name}, ${opened.manifest.precision}"
        }
    }

    private fun pipeline(): Pipeline {
        val open = bundle ?: throw Problem.Damaged("No bundle is open. Fetch one first.")
        val wanted = Triple(open, provider, lowMemory)
        if (loadedFor != wanted) {
            release()
            networks = OrtNetworks(open, provider, lowMemory)
            loadedFor = wanted
        }
        val spec = open.manifest.pipeline
        return Pipeline(spec, Tokenizer(open.file("tokenizer"), spec.tokens), checkNotNull(networks))
    }

    private fun release() {
        networks?.close()
        networks = null
        loadedFor = null
    }

    private fun work(what: String, job: () -> Unit) {
        if (busy) return
        busy = true
        stopped = false
        problem = null
        progress = 0f
        status = what
        worker.execute {
            val said = try {
                job()
                null
            } catch (error: Problem) {
                error.message
            } catch (error: OutOfMemoryError) {
                release()
                "There is too little memory for this. Close other apps, or switch low memory on."
            } catch (error: Exception) {
                "That did not work: ${error.message}"
            }
            show {
                busy = false
                problem = said
                if (said != null) status = bundle?.manifest?.name.orEmpty()
            }
        }
    }

    private fun show(change: () -> Unit) {
        main.post(change)
    }

    private fun freeMib(): Long {
        val info = ActivityManager.MemoryInfo()
        (getApplication<Application>().getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(info)
        return (info.availMem - info.threshold) shr 20
    }
}

private fun Picture.toBitmap(): Bitmap {
    val pixels = IntArray(width * height) { i ->
        fun channel(c: Int) = rgb[3 * i + c].toInt() and 255
        (255 shl 24) or (channel(0) shl 16) or (channel(1) shl 8) or channel(2)
    }
    return Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888)
}
