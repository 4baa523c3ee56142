package dev.kdcedge.app

import android.content.res.AssetManager
import java.io.File

/** A bundle that was built into the app, copied to where onnxruntime can map it; `folder` stays empty if there is none. */
object Assets {
    fun copyBundle(assets: AssetManager, folder: File) {
        val root = assets.list("").orEmpty().firstOrNull { "manifest.json" in assets.list(it).orEmpty() } ?: return
        copy(assets, root, folder)
    }

    private fun copy(assets: AssetManager, name: String, target: File) {
        val inside = assets.list(name).orEmpty()
        if (inside.isNotEmpty()) {
            target.mkdirs()
            inside.forEach { copy(assets, "$name/$it", File(target, it)) }
        } else {
            assets.open(name).use { input -> target.outputStream().use { input.copyTo(it) } }
        }
    }
}
