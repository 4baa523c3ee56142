package dev.kdcedge.app

import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.Surface
import androidx.compose.material3.Tab
import androidx.compose.material3.TabRow
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableIntStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.lifecycle.viewmodel.compose.viewModel

class MainActivity : ComponentActivity() {
    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContent { MaterialTheme { Surface { App() } } }
    }
}

@Composable
private fun App(studio: Studio = viewModel()) {
    var tab by remember { mutableIntStateOf(0) }
    Column(Modifier.safeDrawingPadding()) {
        TabRow(tab) {
            listOf("Draw", "Conformance", "Bundle").forEachIndexed { i, title ->
                Tab(selected = tab == i, onClick = { tab = i }, text = { Text(title) })
            }
        }
        when (tab) {
            0 -> DrawScreen(studio)
            1 -> ConformanceScreen(studio)
            else -> BundleScreen(studio)
        }
    }
}
