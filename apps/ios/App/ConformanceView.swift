import KdcCore
import SwiftUI

/// The golden vectors on this device, stage by stage.
struct ConformanceView: View {
    @Environment(Studio.self) private var studio

    var body: some View {
        NavigationStack {
            List {
                ForEach(studio.verdicts, id: \.stage) { verdict in
                    LabeledContent {
                        Text(verdict.passed ? "pass" : "fail").foregroundStyle(verdict.passed ? .green : .red)
                    } label: {
                        Text(verdict.stage)
                        Text("off by \(verdict.difference), \(verdict.tolerance) allowed").font(.caption)
                    }
                }
                if studio.busy { ProgressView(value: studio.progress) }
                Text(studio.status).font(.footnote)
                if let problem = studio.problem { Text(problem).foregroundStyle(.red) }
                Button("Run the golden vectors") { Task { await studio.conform() } }
                    .disabled(studio.bundle == nil || studio.busy)
                if let results = studio.results { ShareLink("Share results.json", item: results) }
            }
            .navigationTitle("Conformance")
        }
    }
}
