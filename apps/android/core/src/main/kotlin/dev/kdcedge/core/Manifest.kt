package dev.kdcedge.core

import java.io.File
import java.security.MessageDigest

/** `pipeline.betas`: the noise schedule. */
data class Betas(
    val schedule: String,
    val start: Double,
    val end: Double,
    val trainSteps: Int,
    val spacing: String,
    val stepsOffset: Int,
    val setAlphaToOne: Boolean,
) {
    constructor(json: Json) : this(
        json["schedule"].string, json["start"].double, json["end"].double, json["train_steps"].int,
        json["spacing"].string, json["steps_offset"].int, json["set_alpha_to_one"].boolean,
    )
}

/** `pipeline`: how the components make a picture. */
data class PipelineSpec(
    val height: Int,
    val width: Int,
    val latent: List<Int>,
    val latentScaling: Double,
    val tokens: Int,
    val predicts: String,
    val betas: Betas,
    val sampler: String,
    val steps: Int,
    val guidance: Double,
) {
    /** C·H·W. */
    val latentSize: Int get() = latent.reduce(Int::times)
}

data class Component(val files: List<String>, val options: Map<String, String>)

data class FileEntry(val sha256: String, val bytes: Long)

/** What an app needs of manifest.json; docs/bundle.md has all of it. */
class Manifest(
    val name: String,
    val runtime: String,
    val precision: String,
    val pipeline: PipelineSpec,
    val components: Map<String, Component>,
    val files: Map<String, FileEntry>,
    val memoryMib: Long?,
    val id: String,
) {
    companion object {
        const val FORMAT = 1

        fun parse(text: String): Manifest {
            val json = Json.parse(text, "manifest.json")
            val format = json["format"].int
            if (format > FORMAT) throw Problem.Damaged("This bundle is newer than the app. Update the app.")
            if (format < FORMAT) throw Problem.Damaged("This bundle is too old for the app. Convert its model again.")
            val memory = json["requires"]["memory_mib"]
            return Manifest(
                json["name"].string, json["runtime"].string, json["precision"].string, pipeline(json["pipeline"]),
                json["components"].fields.mapValues { (_, component) -> component(component) },
                json["files"].fields.mapValues { (_, file) -> FileEntry(file["sha256"].string, file["bytes"].long) },
                if (memory.isNull) null else memory.long,
                id(json),
            )
        }

        private fun pipeline(json: Json) = PipelineSpec(
            json["image_size"].items[0].int, json["image_size"].items[1].int, json["latent"].items.map { it.int },
            json["latent_scaling"].double, json["tokens"].int, json["prediction_type"].string, Betas(json["betas"]),
            json["sampler"].string, json["steps"].int, json["guidance"].double,
        )

        private fun component(json: Json): Component {
            val options = json["options"].fields.mapValues { (_, option) -> option.canonical().trim('"') }
            return Component(json["files"].items.map { it.string }, options)
        }

        /** SHA-256 over what decides the pictures. */
        private fun id(json: Json): String {
            val parts = listOf("components", "files", "pipeline").map { "${Json.quote(it)}:${json[it].canonical()}" }
            return MessageDigest.getInstance("SHA-256").digest(parts.joinToString(",", "{", "}").toByteArray()).hex()
        }
    }
}

/** A bundle's folder, every file of it as the manifest says. */
class Bundle private constructor(val folder: File, val manifest: Manifest) {
    fun file(name: String) = File(folder, name)

    companion object {
        /** Throws Problem.OtherRuntime, Damaged, or TooLittleMemory; `freeMib` is what the device can spare now. */
        fun open(folder: File, runtime: String, freeMib: Long, progress: (Double) -> Unit = {}): Bundle {
            val text = File(folder, "manifest.json").takeIf { it.isFile }?.readText()
                ?: throw Problem.Damaged("This folder is no bundle: it has no manifest.json.")
            val manifest = Manifest.parse(text)
            if (manifest.runtime != runtime) throw Problem.OtherRuntime(
                "This bundle is made for ${manifest.runtime}; this app runs bundles for $runtime. Fetch one for $runtime."
            )
            val need = manifest.memoryMib
            if (need != null && need > freeMib) throw Problem.TooLittleMemory(
                "This bundle needs $need MiB of memory, $freeMib MiB are free. Close other apps, or fetch a smaller bundle."
            )
            verify(folder, manifest, progress)
            return Bundle(folder, manifest)
        }

        private fun verify(folder: File, manifest: Manifest, progress: (Double) -> Unit) {
            for (name in manifest.components.values.flatMap { it.files } - manifest.files.keys) {
                throw Problem.Damaged("The manifest vouches for no $name. Fetch the bundle again.")
            }
            for ((name, entry) in manifest.files) {
                if (!isSafe(name)) throw Problem.Damaged("The manifest lists '$name', which is outside the bundle.")
                val seen = File(folder, name).takeIf { it.isFile }?.length()
                    ?: throw Problem.Damaged("$name is missing. Fetch the bundle again.")
                if (seen != entry.bytes) throw Problem.Damaged(
                    "$name has $seen bytes and should have ${entry.bytes}. Fetch the bundle again."
                )
            }
            val total = maxOf(1L, manifest.files.values.sumOf { it.bytes })
            var done = 0L
            for ((name, entry) in manifest.files) {
                if (sha256(File(folder, name)) != entry.sha256) throw Problem.Damaged(
                    "$name is damaged: its SHA-256 is not the manifest's. Fetch the bundle again."
                )
                done += entry.bytes
                progress(done.toDouble() / total)
            }
        }

        fun isSafe(name: String): Boolean =
            name.isNotEmpty() && name.none { it in "\\:\u0000" } && name.split("/").none { it in listOf("", ".", "..") }
    }
}

fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    file.inputStream().use { input ->
        val buffer = ByteArray(1 shl 16)
        while (true) {
            val read = input.read(buffer)
            if (read < 0) break
            digest.update(buffer, 0, read)
        }
    }
    return digest.digest().hex()
}

fun ByteArray.hex(): String = joinToString("") { "%02x".format(it) }
