import KdcCore
import KdcCoreML
import SwiftUI

struct DrawView: View {
    @Environment(Studio.self) private var studio
    @State private var prompt = "red apple"
    @State private var seed = 0
    @State private var choosing = false

    var body: some View {
        @Bindable var studio = studio
        NavigationStack {
            Form {
                Section { drawing }
                Section {
                    TextField("What to draw", text: $prompt)
                    Stepper("Seed \(seed)", value: $seed, in: 0...Int(UInt32.max))
                    if studio.busy {
                        Button("Stop", role: .destructive) { studio.cancel() }
                    } else {
                        Button("Draw") { Task { await studio.draw(Request(prompt, seed: UInt32(seed))) } }
                            .disabled(studio.bundle == nil)
                    }
                }
                Section("How") {
                    Picker("Runs on", selection: $studio.units) {
                        ForEach(ComputeUnits.allCases) { Text($0.label).tag($0) }
                    }
                    Toggle("Low memory: one network at a time", isOn: $studio.lowMemory)
                    if studio.offersApplePackage { Toggle("Apple's StableDiffusion package", isOn: $studio.useApplePackage) }
                    Button("Choose a bundle…") { choosing = true }
                }
                .disabled(studio.busy)
            }
            .navigationTitle("kdc-edge")
            .fileImporter(isPresented: $choosing, allowedContentTypes: [.folder]) { chosen in
                if case .success(let folder) = chosen { Task { await studio.open(folder) } }
            }
        }
    }

    @ViewBuilder private var drawing: some View {
        if let picture = studio.picture {
            Image(decorative: picture, scale: 1).resizable().interpolation(.none).scaledToFit()
        }
        if studio.busy { ProgressView(value: studio.progress) }
        Text(studio.status).font(.footnote)
        if let problem = studio.problem { Text(problem).foregroundStyle(.red) }
    }
}
