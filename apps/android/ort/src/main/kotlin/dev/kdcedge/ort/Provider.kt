package dev.kdcedge.ort

import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtProvider
import ai.onnxruntime.OrtSession.SessionOptions
import ai.onnxruntime.providers.NNAPIFlags
import dev.kdcedge.core.Problem
import java.util.EnumSet

/** What may run the networks; each leaves operators that it does not know to the CPU. */
enum class Provider(val label: String, private val names: Set<String>) {
    NNAPI("NNAPI", setOf("NNAPI")),
    QNN("QNN (Qualcomm)", setOf("QNN")),
    XNNPACK("XNNPACK", setOf("XNNPACK")),
    CPU("CPU", setOf("CPU"));

    fun isHere(): Boolean = OrtEnvironment.getAvailableProviders().any { it.name in names }

    /** Adds itself; Problem.CannotRun where this onnxruntime or this device has none. */
    internal fun add(options: SessionOptions) {
        if (!isHere()) throw Problem.CannotRun("$label is not in this app's onnxruntime. Choose another provider.")
        try {
            when (this) {
                NNAPI -> options.addNnapi(EnumSet.of(NNAPIFlags.USE_FP16))
                QNN -> addQnn(options)
                XNNPACK -> options.addXnnpack(mapOf("intra_op_num_threads" to "${threads()}"))
                CPU -> options.setIntraOpNumThreads(threads())
            }
        } catch (error: OrtException) {
            throw Problem.CannotRun("$label cannot be used on this device (${error.message}). Choose another provider.")
        }
    }

    companion object {
        /** Those that this device may have, the one to try first at the front. */
        fun here(): List<Provider> = entries.filter { it.isHere() }

        private fun threads() = (Runtime.getRuntime().availableProcessors() / 2).coerceIn(1, 4)

        /** By reflection: onnxruntime's Java has it from 1.20 on, and only in its QNN build is there anything behind it. */
        private fun addQnn(options: SessionOptions) {
            val add = options.javaClass.methods.firstOrNull { it.name == "addQnn" }
                ?: throw Problem.CannotRun("QNN is not in this app's onnxruntime. Choose another provider.")
            add.invoke(options, mapOf("backend_path" to "libQnnHtp.so"))
        }
    }
}
