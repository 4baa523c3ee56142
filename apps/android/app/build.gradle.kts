plugins {
    id("com.android.application")
    kotlin("android")
    kotlin("plugin.compose")
}

android {
    namespace = "dev.kdcedge.app"
    compileSdk = 35
    defaultConfig {
        applicationId = "dev.kdcedge.app"
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "0.1.0"
    }
    buildFeatures { compose = true }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
    sourceSets["main"].assets.srcDir("bundle") // bundle/emoji-64/… is built into the app, if it is there
    androidResources { noCompress += listOf("onnx") }
}

// For QNN on Snapdragon take onnxruntime-android-qnn instead.
dependencies {
    implementation(project(":ort"))
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0")
    implementation(platform("androidx.compose:compose-bom:2024.12.01"))
    implementation("androidx.compose.material3:material3")
    implementation("androidx.activity:activity-compose:1.9.3")
    implementation("androidx.lifecycle:lifecycle-viewmodel-compose:2.8.7")
}
