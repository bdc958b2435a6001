"""Pictures: each module turns data into a matplotlib `Figure`, and `style.save` writes one (`runs` does so for a run folder)."""
