plugins { kotlin("jvm") }

kotlin { jvmToolchain(17) }

// The Java API is the same; the app brings the library for Android, the tests the one for this machine.
dependencies {
    api(project(":core"))
    compileOnly("com.microsoft.onnxruntime:onnxruntime:1.20.0")
    testImplementation("com.microsoft.onnxruntime:onnxruntime:1.20.0")
    testImplementation(kotlin("test-junit"))
}
