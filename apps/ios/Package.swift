// swift-tools-version:5.9
import PackageDescription

// KdcCore is plain Swift and is tested on Linux, too; KdcCoreML is empty where there is no Core ML.
let package = Package(
    name: "Kdc",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "KdcCore", targets: ["KdcCore"]), .library(name: "KdcCoreML", targets: ["KdcCoreML"])],
    targets: [
        .target(name: "KdcCore"),
        .target(name: "KdcCoreML", dependencies: ["KdcCore"]),
        .testTarget(name: "KdcCoreTests", dependencies: ["KdcCore"]),
    ]
)
