package dev.kdcedge.app

import androidx.compose.foundation.Image
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.ColumnScope
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.FilterChip
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Switch
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.graphics.FilterQuality
import androidx.compose.ui.graphics.asImageBitmap
import androidx.compose.ui.layout.ContentScale
import androidx.compose.ui.unit.dp
import dev.kdcedge.core.Request

@Composable
fun DrawScreen(studio: Studio) = Page(studio) {
    var prompt by remember { mutableStateOf("red apple") }
    var seed by remember { mutableStateOf("0") }
    studio.picture?.let {
        val modifier = Modifier.fillMaxWidth()
        Image(it.asImageBitmap(), prompt, modifier, contentScale = ContentScale.FillWidth, filterQuality = FilterQuality.None)
    }
    OutlinedTextField(prompt, { prompt = it }, Modifier.fillMaxWidth(), label = { Text("What to draw") })
    OutlinedTextField(seed, { seed = it }, label = { Text("Seed, 0 to 4294967295") })
    val number = seed.toLongOrNull()?.takeIf { it in 0..0xFFFFFFFFL }
    Action(studio, "Draw", studio.bundle != null && number != null) { studio.draw(Request(prompt, number ?: 0)) }
    Row(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        for (provider in studio.providers) {
            val chosen = studio.provider == provider
            FilterChip(chosen, { studio.provider = provider }, { Text(provider.label) }, enabled = !studio.busy)
        }
    }
    Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        Switch(studio.lowMemory, { studio.lowMemory = it }, enabled = !studio.busy)
        Text("Low memory: one network at a time")
    }
}

/** The golden vectors on this device, stage by stage. */
@Composable
fun ConformanceScreen(studio: Studio) = Page(studio) {
    for (verdict in studio.verdicts) {
        Row(Modifier.fillMaxWidth(), Arrangement.SpaceBetween) {
            Column {
                Text(verdict.stage)
                Text("off by ${verdict.difference}, ${verdict.tolerance} allowed", style = MaterialTheme.typography.bodySmall)
            }
            Text(if (verdict.passed) "pass" else "fail", color = if (verdict.passed) Color(0xFF2E7D32) else Color.Red)
        }
    }
    Action(studio, "Run the golden vectors", studio.bundle != null) { studio.conform() }
    Text("What was measured: ${studio.results}", style = MaterialTheme.typography.bodySmall)
}

@Composable
fun BundleScreen(studio: Studio) = Page(studio) {
    var address by remember { mutableStateOf("https://") }
    OutlinedTextField(address, { address = it }, Modifier.fillMaxWidth(), label = { Text("Address of a bundle's folder") })
    Action(studio, "Fetch", address.length > "https://".length) { studio.fetch(address) }
    studio.bundle?.let { Text("Bundle ${it.manifest.id}", style = MaterialTheme.typography.bodySmall) }
}

@Composable
private fun Page(studio: Studio, content: @Composable ColumnScope.() -> Unit) {
    Column(Modifier.padding(16.dp).verticalScroll(rememberScrollState()), Arrangement.spacedBy(12.dp)) {
        content()
        if (studio.busy) LinearProgressIndicator({ studio.progress }, Modifier.fillMaxWidth())
        Text(studio.status)
        studio.problem?.let { Text(it, color = Color.Red) }
    }
}

@Composable
private fun Action(studio: Studio, label: String, enabled: Boolean, run: () -> Unit) {
    if (studio.busy) Button({ studio.stop() }) { Text("Stop") } else Button(run, enabled = enabled) { Text(label) }
}
