import SwiftUI

@main
struct KdcApp: App {
    @State private var studio = Studio()

    var body: some Scene {
        WindowGroup {
            TabView {
                DrawView().tabItem { Label("Draw", systemImage: "paintbrush") }
                ConformanceView().tabItem { Label("Conformance", systemImage: "checkmark.seal") }
            }
            .environment(studio)
            .task { await studio.openShipped() }
        }
    }
}
