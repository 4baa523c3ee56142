plugins {
    id("com.android.application") version "8.7.3" apply false
    kotlin("android") version "2.1.0" apply false
    kotlin("jvm") version "2.1.0" apply false
    kotlin("plugin.compose") version "2.1.0" apply false
}

// What the tests of core and ort read.
subprojects {
    tasks.withType<Test> {
        val repository = rootDir.parentFile.parentFile
        val bundle = repository.resolve("kdc_edge/data/emoji-64")
        val id = Regex("Bundle id `([0-9a-f]{64})`").find(bundle.resolve("README.md").readText())!!.groupValues[1]
        systemProperty("kdc.bundle", bundle.path)
        systemProperty("kdc.id", id)
        systemProperty("kdc.vectors", repository.resolve("apps/vectors.json").path)
        systemProperty("kdc.results", temporaryDir.resolve("results.json").path)
    }
}
