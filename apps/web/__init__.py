"""An installable web app that draws on the device, in the browser: `python -m apps.web` serves it."""
