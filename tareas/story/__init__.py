"""The parts of demo.py: actors (stage), chapters, what a person sees (view), who did what when (timeline)."""
